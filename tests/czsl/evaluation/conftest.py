import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # dense.py and random_problems.py, the oracles that several test files share
