import json
import sys
import warnings

from expc_runtime.dry import answer

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print("\n" + json.dumps(answer(json.load(sys.stdin))))  # the last line: own code may print too
