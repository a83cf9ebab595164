import json
import logging
import sys
import warnings

from expc_runtime.dry import answer

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)  # torch logs what is raised as well
    print("\n" + json.dumps(answer(json.load(sys.stdin))))  # the last line: own code may print too
