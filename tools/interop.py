"""What the scripts that compare gqakit with other runtimes share: calling our programs, scores, differences. BUILD=build."""
import json
import os
import subprocess
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUILD = os.path.join(ROOT, os.environ.get("BUILD", "build"))
UNSUPPORTED = 4  # exit code


class Failed(RuntimeError):
    def __init__(self, program, arguments, done):
        self.status, self.sentence = done.returncode, done.stderr.decode().strip().removeprefix(f"{program}: error: ")
        super().__init__(f"{program} {' '.join(arguments)}: exit {self.status}: {self.sentence}")


def run(program, *arguments):
    done = subprocess.run([os.path.join(BUILD, program), *arguments], capture_output=True)
    if done.returncode:
        raise Failed(program, arguments, done)
    return done.stdout.decode()


def score(path, ids, *flags):
    """ln p(ids[i+1] | ids[0..i]) by gqa-eval."""
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as lines:
        lines.write(json.dumps({"ids": ids}) + "\n")
        lines.flush()
        return json.loads(run("gqa-eval", "score", path, "--tokens", lines.name, "--threads", "1", *flags))["logprob"]


def legal_groups(path):
    return json.loads(run("gqa-convert", "--inspect", path, "--json"))["legal_kv_heads"]


def furthest(a, b):
    """The largest difference; infinity for a NaN or another length."""
    differences = [abs(p - q) for p, q in zip(a, b)]
    return max(differences) if len(a) == len(b) and all(x == x for x in differences) else float("inf")
