"""What the heads learn and what their outputs mean: SUPERB's vocabularies, encoders and decoders (paper, Section 4.1).

Pure functions on lists, as the released s3prl code has them. T labels (100 Hz; diarization only).
"""
import numpy as np

SAMPLE_RATE = 16_000
LABEL_HOP = SAMPLE_RATE // 100   # SD: a label every 10 ms
VOWELS = [vowel + stress for vowel in "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW".split() for stress in "012"]
CONSONANTS = "B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH".split()
PHONES = ["SIL", "SPN", *sorted(VOWELS + CONSONANTS)]
PR_SYMBOLS = ["<pad>", "<eos>", "<unk>", *PHONES]  # symbol 0 is the CTC blank, here and below
ASR_SYMBOLS = ["<s>", "<pad>", "</s>", "<unk>", *"|ETAONIHSRDLUMCWFGYPBVK'XJQZ"]
SF_SYMBOLS = ["<pad>", "<eos>", "<unk>", " ", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ'"]  # and two tags for each slot type
KEYWORDS = "yes no up down left right on off stop go _unknown_ _silence_".split()
SPEAKERS = [f"id{number}" for number in range(10_001, 11_252)]
EMOTIONS = ["neu", "hap", "ang", "sad"]

def encode(tokens: list[str], symbols: list[str]) -> list[int]:
    """Tokens -> ids. The end of sentence is a token that CTC has to output: in PR, ASR and SF alike."""
    # DIFFERS: the released ASR gives an unseen character the id 32, which its head lacks; ours gives it <unk>
    known = {symbol: id for id, symbol in enumerate(symbols)}
    return [known.get(token, known["<unk>"]) for token in tokens]

def decode_phones(ids: list[int]) -> list[str]:
    """Ids without repeats and blanks -> phones. The end of sentence vanishes wherever it is; below as well."""
    return [PR_SYMBOLS[id] for id in ids if id != 1]

def decode_words(ids: list[int]) -> list[str]:
    """Ids without repeats and blanks -> words."""
    return "".join(ASR_SYMBOLS[id] for id in ids if id != 2).replace("|", " ").split()

def decode_slots(symbols: list[str], ids: list[int]) -> str:
    """Ids without repeats and blanks -> `PLAY B-artist ABBA E-artist`."""
    return "".join(symbols[id] for id in ids if id != 1)

def slot_tokens(words: list[str], slots: list[str]) -> list[str]:
    """PLAY ABBA, O artist -> P L A Y ` ` `B-artist ` A B B A ` E-artist` <eos>.
    Punctuation is skipped, together with (as in SUPERB) a closing tag or an end of sentence that it would bring."""
    tokens, last = [], len(words) - 1
    for i, (word, slot) in enumerate(zip(words, slots)):
        if word not in "?!.,;-":
            opens = slot != "O" and (i == 0 or slots[i - 1] != slot)
            closes = slot != "O" and (i == last or slots[i + 1] != slot)
            tokens += [f"B-{slot} "] * opens + list("AND" if word == "&" else word) + [f" E-{slot}"] * closes
            tokens.append("<eos>" if i == last else " ")
    return tokens

def diarization_labels(turns: list, samples: int) -> np.ndarray:
    """Turns (speaker, start s, end s) -> float32 (T, 2), 1 while they talk; columns in the order of the names."""
    speakers, labels = sorted({turn[0] for turn in turns}), np.zeros((samples // LABEL_HOP, 2), np.float32)
    for speaker, *times in turns:
        start, stop = (round(seconds * SAMPLE_RATE / LABEL_HOP) for seconds in times)
        labels[start:stop, speakers.index(speaker)] = 1
    return labels

def decode_turns(probabilities, threshold: float = 0.5, median: int = 11) -> list:
    """(T, 2) probabilities -> [[speaker, start s, end s], ...]: threshold, then median (zeros beyond the ends)."""
    # DIFFERS: they try ten thresholds and medians on the test set and report the best
    active = np.pad(np.asarray(probabilities) > threshold, ((median // 2, median // 2), (0, 0)))
    smooth = np.lib.stride_tricks.sliding_window_view(active, median, axis=0).sum(-1) > median // 2  # (T, 2)
    edges = [np.flatnonzero(np.diff(column, prepend=False, append=False)).tolist() for column in smooth.T]
    return [[str(k), a / 100, b / 100] for k in (0, 1) for a, b in zip(edges[k][::2], edges[k][1::2])]

def decode_intent(values: list[list[str]], indices) -> list[str]:
    """Three indices -> [action, object, location]."""
    return [names[index] for names, index in zip(values, indices)]
