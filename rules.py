"""SUPERB's rules as pure functions: vocabularies, label encoding and decoding, a split of
recordings, silence removal.

They follow the released s3prl code (paper, Section 3.1). A decoder turns the output of a head into
a value that can be compared with `Utterance.reference`; its first argument is `Corpus.labels`.

n samples at 16 kHz, F label frames at 100 Hz (diarization only), K speakers.
"""
import hashlib

import numpy as np

SAMPLE_RATE = 16_000
RECEPTIVE_FIELD, HOP = 400, 320  # HuBERT: receptive field and stride in samples
GAIN = 10 ** (-3 / 20)           # KS, ASV: -3 dB
LABEL_HOP = SAMPLE_RATE // 100   # SD: a label every 10 ms
SPEAKER_CROP = 8 * SAMPLE_RATE   # SID, ASV: the longest input in training

# ASV: sox's `silence 1 0.1 0.1% -1 0.1 0.1%`. A sample is loud if the RMS of the 20 ms that end
# with it exceeds 0.1 % of full scale (2**31 - 1). sox truncates the RMS, so the squares of the
# window have to add up to at least LOUD_POWER.
RMS_WINDOW = SAMPLE_RATE // 50
SOX_RUN = SAMPLE_RATE // 10      # 0.1 s: the shortest run of loud or of quiet samples that counts
LOUD_POWER = RMS_WINDOW * 2_147_484**2

VOWELS = "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW".split()
CONSONANTS = "B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH".split()
STRESSED_VOWELS = [vowel + stress for vowel in VOWELS for stress in "012"]
PHONEMES = ["SIL", "SPN", *sorted(STRESSED_VOWELS + CONSONANTS)]
# Symbol 0 is the CTC blank, whatever its name.
PR_SYMBOLS = ["<pad>", "<eos>", "<unk>", *PHONEMES]
ASR_SYMBOLS = ["<s>", "<pad>", "</s>", "<unk>", *"|ETAONIHSRDLUMCWFGYPBVK'XJQZ"]
SF_SYMBOLS = ["<pad>", "<eos>", "<unk>", " ", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ'"]  # + two tags per slot
KEYWORDS = "yes no up down left right on off stop go _unknown_ _silence_".split()
SPEAKERS = [f"id{number}" for number in range(10_001, 11_252)]
TEST_SPEAKERS = SPEAKERS[269:309]  # ASV: id10270 to id10309, in VoxCeleb's list of test trials
EMOTIONS = ["neu", "hap", "ang", "sad"]
VOICES = {"train": ("Ivy", "Joanna", "Joey", "Justin", "Kendra", "Kimberly", "Matthew", "Salli"),
          "dev": ("Aditi", "Amy", "Geraint", "Nicole"),
          "test": ("Brian", "Emma", "Raveena", "Russell")}


def encode(tokens: list[str], symbols: list[str]) -> list[int]:
    """The id of each token: its index in `symbols`, or that of <unk>.

    Callers append the end-of-sentence token, so CTC has to output it in PR, ASR and SF."""
    # DIFFERS: the released ASR gives an unseen character the id 32, which its head lacks; ours
    # gives it <unk>
    known = {symbol: index for index, symbol in enumerate(symbols)}
    return [known.get(token, known["<unk>"]) for token in tokens]


def ctc_frames(ids: list[int]) -> int:
    """The fewest frames that can output a target: one per symbol, one between equal symbols."""
    frames = len(ids)
    for symbol, following in zip(ids, ids[1:]):
        if symbol == following:
            frames += 1
    return frames


def decode_label(labels: list[str], index: int) -> str:
    """A class number -> its name (KS, SID, ER)."""
    return labels[index]


def decode_intent(labels: list[list[str]], indices: list[int] | int) -> list[str]:
    """One class number per slot -> [action, object, location] (IC)."""
    if isinstance(indices, int):  # the head has one slot
        indices = [indices]
    return [names[index] for names, index in zip(labels, indices)]


def decode_phonemes(labels: list[str], ids: list[int]) -> list[str]:
    """Ids without repeats and blanks -> phonemes (PR). Every end of sentence is removed."""
    return [labels[index] for index in ids if labels[index] != "<eos>"]


def decode_words(labels: list[str], ids: list[int]) -> list[str]:
    """Ids without repeats and blanks -> words (ASR). Every end of sentence is removed."""
    characters = [labels[index] for index in ids if labels[index] != "</s>"]
    return "".join(characters).replace("|", " ").split()


def decode_slots(labels: list[str], ids: list[int]) -> str:
    """Ids without repeats and blanks -> `PLAY B-artist ABBA E-artist` (SF), without end."""
    return "".join(labels[index] for index in ids if labels[index] != "<eos>")


def decode_embedding(labels: list[str], embedding: list[float]) -> list[float]:
    """A speaker embedding, as it is (ASV): its cosines with others are scored."""
    return list(embedding)


def decode_turns(labels: list[str], probabilities, threshold: float = 0.5,
                 median: int = 11) -> list:
    """Probabilities (F, K) -> [[speaker, start s, end s], ...] (SD): threshold, then median filter.

    Beyond both ends the filter sees zeros."""
    # DIFFERS: they try ten thresholds and medians on the test set and report the best
    active = np.asarray(probabilities) > threshold
    padded = np.pad(active, ((median // 2, median // 2), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, median, axis=0)  # (F, K, median)
    smooth = windows.sum(-1) > median // 2
    turns = []
    for column, speaker in enumerate(labels):
        changes = np.diff(smooth[:, column], prepend=False, append=False)
        edges = np.flatnonzero(changes).tolist()  # on, off, on, off, ...
        for start, stop in zip(edges[::2], edges[1::2]):
            turns.append([speaker, start / 100, stop / 100])
    return turns


def slot_tokens(words: list[str], slots: list[str]) -> list[str]:
    """The tokens of a sentence with slots: characters, tags, the end of the sentence.

    ["PLAY", "ABBA"] and ["O", "artist"] give ["P", "L", "A", "Y", " ", "B-artist ", "A", "B", "B",
    "A", " E-artist", "<eos>"]. A word that is only punctuation is skipped; as in SUPERB, a closing
    tag or an "<eos>" that it would bring is then missing.
    """
    tokens, last = [], len(words) - 1
    for i, (word, slot) in enumerate(zip(words, slots)):
        if word in "?!.,;-":
            continue
        if slot != "O" and (i == 0 or slots[i - 1] != slot):
            tokens.append(f"B-{slot} ")
        tokens.extend("AND" if word == "&" else word)
        if slot != "O" and (i == last or slots[i + 1] != slot):
            tokens.append(f" E-{slot}")
        tokens.append("<eos>" if i == last else " ")
    return tokens


def word_characters(words: list[str]) -> list[str]:
    """The characters of each word, and a | after it."""
    characters = []
    for word in words:
        characters += [*word, "|"]
    return characters


def make_trials(recordings: list[list[str]]) -> list[tuple[int, str, str]]:
    """Dev trials of the first 40 training speakers: each with itself and with the next speaker."""
    # DIFFERS: the released code draws 20,000 random pairs. In both cases the recordings of the dev
    # trials are training data too.
    trials = []
    for own, following in zip(recordings[:40], recordings[1:]):
        half = len(own) // 2
        for k in range(min(10, len(own) - half, len(following))):
            if half > 0:  # a single recording has no partner of its speaker
                trials.append((1, own[k], own[half + k]))
            trials.append((0, own[k], following[k]))
    return trials


def clip_turns(turns: list, start: float, end: float) -> list:
    """Turns between two times in seconds: cut there, and counted from `start`.

    A turn is [speaker, start, end]. `end` may be float("inf")."""
    clipped = []
    for speaker, turn_start, turn_end in turns:
        if turn_start < end and turn_end > start:
            clipped.append([speaker, max(turn_start - start, 0.0), min(turn_end, end) - start])
    return clipped


def diarization_labels(turns: list, samples: int, columns: int = 2) -> np.ndarray:
    """Turns (speaker, start s, end s) -> float32 (F, columns): 1 while a speaker talks.

    The columns are in the order of the speakers' names."""
    speakers = sorted({speaker for speaker, _, _ in turns})
    labels = np.zeros((samples // LABEL_HOP, columns), np.float32)
    for speaker, start, end in turns:
        first = round(start * SAMPLE_RATE / LABEL_HOP)
        stop = round(end * SAMPLE_RATE / LABEL_HOP)
        labels[first:stop, speakers.index(speaker)] = 1
    return labels


def keyword_split(name: str) -> str:
    """The split of a file, or "discarded": Speech Commands hashes the speaker in its name."""
    speaker = name.split("_nohash_")[0]
    digest = hashlib.sha1(speaker.encode("utf-8", "surrogateescape")).hexdigest()
    percent = int(digest, 16) % 2**27 * 100 / (2**27 - 1)
    if percent < 10:
        return "dev"
    return "discarded" if percent < 20 else "train"


def squares(wave: np.ndarray, gain: float) -> np.ndarray:
    """The squares of sox's 32-bit samples, int64 (n,). A square above LOUD_POWER counts as
    LOUD_POWER: int64 holds the sums of a window exactly."""
    scaled = np.rint(wave.astype(np.float64) * (gain * 2**31)) ** 2
    return np.minimum(scaled, LOUD_POWER).astype(np.int64)


def loud_samples(wave: np.ndarray, gain: float, block: int = 60 * SAMPLE_RATE) -> np.ndarray:
    """Whether each sample of a wave is loud, bool (n,). Blocks need little memory for an hour."""
    loud = np.zeros(len(wave), bool)
    for start in range(0, len(wave), block):
        begin = max(0, start - RMS_WINDOW)  # the windows of the block begin here
        # The sums may overflow int64 and wrap around. Their differences are exact all the same.
        sums = np.cumsum(squares(wave[begin:start + block], gain))
        power = sums.copy()  # of each window of RMS_WINDOW samples
        power[RMS_WINDOW:] -= sums[:-RMS_WINDOW]
        loud[start:start + block] = power[start - begin:] >= LOUD_POWER
    return loud


def voiced_segments(wave: np.ndarray, gain: float = 1.0) -> list[tuple[int, int]]:
    """The segments [start, stop) of a wave (n,) that sox's silence effect keeps, to the sample.

    sox has two states. In silence, a run of SOX_RUN loud samples begins a segment at its first
    sample. In a segment, a run of SOX_RUN quiet samples ends it before its first sample; sox then
    empties its RMS window and is in silence again. Only runs of that length change the state, so
    the loop visits no others."""
    loud = loud_samples(wave, gain)
    changes = np.flatnonzero(loud[1:] != loud[:-1]) + 1
    starts = np.concatenate([[0], changes])
    stops = np.concatenate([changes, [len(wave)]])
    segments, segment_start, window_is_loud_at = [], None, 0
    for run in np.flatnonzero(stops - starts >= SOX_RUN):
        start, stop = int(starts[run]), int(stops[run])
        if segment_start is None and loud[start]:
            start = max(start, window_is_loud_at)
            if stop - start >= SOX_RUN:
                segment_start = start
        elif segment_start is not None and not loud[start]:
            segments.append((segment_start, start))
            segment_start = None
            # An emptied window stays quiet until its new samples reach LOUD_POWER; `loud` assumes
            # a full window.
            emptied_at = start + SOX_RUN
            following = squares(wave[emptied_at:emptied_at + RMS_WINDOW], gain)
            refilling = np.cumsum(following) < LOUD_POWER
            window_is_loud_at = emptied_at + int(refilling.sum())
    if segment_start is not None:
        segments.append((segment_start, len(wave)))
    return segments
