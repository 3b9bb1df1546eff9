"""Programs beside the path: python -m tools.bench, tools.tour; the dry run of train.py."""
