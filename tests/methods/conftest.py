import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # clus_pro_fixtures.py, which several test files share
