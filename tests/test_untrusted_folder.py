"""Folders whose code, files or card are not what our tools write: `check` reports them, and runs nothing of them."""

import json
import re
from itertools import pairwise

import pytest
import torch
from safetensors.torch import save_file

from flashvid_hf.publishing import checking
from flashvid_hf.publishing.check_config import is_hub_id
from flashvid_hf.publishing.clean_process import Workplace, workplace
from flashvid_hf.publishing.code_audit import find_faults, find_snippet_faults
from flashvid_hf.publishing.hub_folder import read_yaml

AUTO = "from transformers import AutoModel\n"
# Code that some list of forbidden names misses. Each is at least one fault.
PROBES = {
    "a module by its name": 'import importlib\nimportlib.import_module("os").system("id")\n',
    "torch.serialization": "import torch\ntorch.serialization.load('x')\n",
    "posix": "import posix\nposix.system('id')\n",
    "sys.modules": "import sys\nsys.modules['os'].system('id')\n",
    "sys.modules, in pieces": "import sys\nm = sys.modules\nm['o' + 's']\n",
    "a module of a module": "import torch\ntorch.os.system('id')\n",
    "a module of the standard library's": "import typing\ntyping.sys.modules\n",
    "a module under another name": "import os\no = os\no.system('id')\n",
    "a module from a helper": "from .helper import os\nos.system('id')\n",
    "globals of a function": "import torch\ntorch.nn.Module.__init__.__globals__['sys']\n",
    "subclasses": "().__class__.__base__.__subclasses__()\n",
    "builtins as a variable": "__builtins__['exec']('x')\n",
    "builtins by a method": "len.__self__.exec('x')\n",
    "getattr under another name": "g = getattr\ng(g, 'x')\n",
    "getattr with a computed name": "getattr(len, '__se' + 'lf__')\n",
    "getattr with a hidden name": "getattr(len, '__self__')\n",
    "getattr by map": "list(map(getattr, [len], ['__self__']))\n",
    "operator.attrgetter": "import operator\noperator.attrgetter('__self__')(len)\n",
    "an annotation that is evaluated": "import dataclasses\nclass A:\n    x: \"__import__('os').system('id')\" = 1\n",
    "type hints": "import typing\ntyping.get_type_hints(1)\n",
    "a frame": "x = (1 for _ in [1])\nx.gi_frame.f_builtins\n",
    "a frame whose name is defined": "gi_frame = f_builtins = 1\nx = (1 for _ in [1])\nx.gi_frame.f_builtins\n",
    "a pattern": "match len:\n    case object(__self__=x):\n        x\n",
    "a trace": "import sys\nsys.settrace(print)\n",
    "import hooks": "import sys\nsys.meta_path.append(1)\n",
    "a changed library": "import torch\ntorch.nn.Linear.forward = torch.load = 1\n",
    "environment": "import os\nos.environ['A']\n",
    "a file by torch": "import torch\ntorch.from_file('x', shared=True, size=9)\n",
    "threads": "import threading\nthreading.Thread(target=print).start()\n",
    "signals": "import signal\nsignal.alarm(1)\n",
    "code objects": "import types\ntypes.FunctionType\n",
    "debugger": "breakpoint()\n",
    "remote code of others": "import transformers\ntransformers.dynamic_module_utils.get_class_from_dynamic_module\n",
    "other code": f"{AUTO}AutoModel.from_pretrained('a/b', trust_remote_code=True)\n",
    "other code, passed on": f"{AUTO}def load(trust):\n    AutoModel.from_pretrained('a/b', trust_remote_code=trust)\n",
    "other code, passed whole": f"{AUTO}def load(**kwargs):\n    AutoModel.from_pretrained('/a', **kwargs)\n",
    "other code by a key": f"{AUTO}AutoModel.from_pretrained('a/b', **{{'trust_remote_code': True}})\n",
    "other code by parts of a key": f"{AUTO}AutoModel.from_pretrained('a/b', **{{'trust_' + 'remote_code': 1}})\n",
    "homoglyph": "еval = 1\n",
    "compatibility letters": "import os\nos.ｓystem('id')\n",
    "text in another direction": "x = 'a\u202eb'\n",
    "a form feed in an import": "import math\n\x0cx = 1\n",
    "deep nesting": "x = " + "(" * 5000 + ")" * 5000 + "\n",
    "a null byte": "x = 1\n\x00",
}


@pytest.mark.parametrize("name", PROBES)
def test_code(tmp_path, name):
    (tmp_path / "helper.py").write_text("import os\n")
    (tmp_path / "module.py").write_text(PROBES[name])
    assert [fault for fault in find_faults(tmp_path) if fault.file == "module.py"]


@pytest.mark.parametrize(
    "code",
    [
        b"# coding: utf-7\n+AGUAdgBhAGw-('1')\n",
        b"#!/usr/bin/python\n# -*- coding: latin-1 -*-\nx = 1\n",
        b"\xef\xbb\xbfx = 1\n",
        b"# coding: rot13\nx = 1\n",
        b"x = '\xff'\n",
    ],
)
def test_encodings(tmp_path, code):
    (tmp_path / "module.py").write_bytes(code)
    assert [fault.rule for fault in find_faults(tmp_path)] == ["text"]


@pytest.mark.parametrize(
    "block",
    [
        "import os\nos.system('id')",
        "import subprocess",
        "import requests",
        "open('/etc/passwd', 'w')",
        "from flashvid_hf import os\nos.system('id')",
        "import flashvid_hf.evaluation.evaluate as e\ne.subprocess.run('id')",
        "__import__('os')",
        "from pathlib import Path\nPath('x').write_text('x')",
    ],
)
def test_blocks_of_a_card(block):
    assert find_snippet_faults("README.md", block)


LOADS = "from transformers import AutoConfig, AutoModel, AutoTokenizer, pipeline\n"


@pytest.mark.parametrize(
    "block",
    [
        "AutoConfig.from_pretrained('/a/path', trust_remote_code=True)",
        "AutoConfig.from_pretrained('../path', trust_remote_code=True)",
        "AutoConfig.from_pretrained('~/path', trust_remote_code=True)",
        "AutoConfig.from_pretrained('file:///a/path', trust_remote_code=True)",
        "AutoConfig.from_pretrained('a\\\\path', trust_remote_code=True)",
        "AutoConfig.from_pretrained('/a' + '/path', trust_remote_code=True)",
        "AutoConfig.from_pretrained(f'{1}/path', trust_remote_code=True)",
        "AutoConfig.from_pretrained(pretrained_model_name_or_path='/a/path', trust_remote_code=True)",
        "AutoConfig.from_pretrained('a/b', pretrained_model_name_or_path='/a/path', trust_remote_code=True)",
        "AutoConfig.from_pretrained('a/b', cache_dir='/a/path', trust_remote_code=True)",
        "AutoConfig.from_pretrained('a/b', trust_remote_code=1)",
        "AutoConfig.from_pretrained('a/b', trust_remote_code=(yes := True))",
        "name = 'a/b'\nname = '/a/path'\nAutoConfig.from_pretrained(name, trust_remote_code=True)",
        "name = 'a/b'\nfor name in ['/a/path']:\n    AutoConfig.from_pretrained(name, trust_remote_code=True)",
        "name = 'a/b'\ndef load(name):\n    AutoConfig.from_pretrained(name, trust_remote_code=True)\nload('/a/path')",
        "pipeline('t', model='/a/path', trust_remote_code=True)",
        "pipeline('t', '/a/path', trust_remote_code=True)",
        "pipeline('t', 'a/b', '/a/path', trust_remote_code=True)",
        "pipeline('t', 'a/b', None, None, None, None, None, None, None, None, None, None, None, True)",
        "pipeline('t', model='a/b', tokenizer='/a/path', trust_remote_code=True)",
        "pipeline('t', model='a/b', config=AutoConfig.from_pretrained('/a/path'), trust_remote_code=True)",
        "pipeline(*['t', '/a/path'], trust_remote_code=True)",
        "options = dict(trust_remote_code=True)\npipeline('t', model='/a/path', **options)",
        "options = {'trust_remote_code': True}\npipeline('t', model='/a/path', **options)",
        "options = {'trust_' + 'remote_code': True}\npipeline('t', model='/a/path', **options)",
        "load = AutoConfig.from_pretrained\nload('/a/path', trust_remote_code=True)",
        "from functools import partial\npartial(pipeline, model='/a/path', trust_remote_code=True)('t')",
        "config = AutoConfig.from_pretrained('a/b')\nconfig.auto_map = {'AutoConfig': '/a/path--b.C'}",
        "AutoModel.from_config(AutoConfig.from_pretrained('/a/path'), trust_remote_code=True)",
        "model = AutoModel.from_pretrained('a/b')\nmodel.generate(custom_generate='/a/path', trust_remote_code=True)",
    ],
)
def test_blocks_that_load_the_code_of_another_folder(block):
    found = find_snippet_faults("README.md", LOADS + block)
    assert any(re.search("load|trust_remote_code|names code", fault.message) for fault in found), found


@pytest.mark.parametrize(
    "block",
    [
        "pipeline('t', model='flashvid-demo', trust_remote_code=True)",
        "pipeline('t', 'a/b', trust_remote_code=True, dtype='auto', device_map='auto', revision='main')",
        "name = 'a/b'\npipeline('t', model=name, trust_remote_code=True, retention_ratio=0.2)",
        "AutoModel.from_pretrained('a/b', trust_remote_code=True)",
        "AutoTokenizer.from_pretrained('/a/path')",
        "AutoModel.from_pretrained('a/b', trust_remote_code=True, low_cpu_mem_usage=True, local_files_only=True)",
        "AutoTokenizer.from_pretrained('a/b', trust_remote_code=False)",
        "import torch\ndevice = 'cuda' if torch.cuda.is_available() else 'cpu'\n"
        "AutoModel.from_pretrained('a/b', trust_remote_code=True).to(device)",
    ],
)
def test_blocks_that_load_the_folder(block):
    assert find_snippet_faults("README.md", LOADS + block) == []


def test_own_names_are_allowed(tmp_path):
    """Code of your own that computes."""
    (tmp_path / "module.py").write_text(
        "import math\nfrom functools import partial\n\nimport torch\nfrom torch import nn\n\n\n"
        "class Own(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.mine = math.pi\n\n"
        "    def forward(self, x: torch.Tensor) -> torch.Tensor:\n"
        "        return partial(torch.relu)(x.softmax(-1)) * self.mine + nn.functional.gelu(x).sum()\n"
    )
    assert find_faults(tmp_path) == []


FAULTS = {
    "imports": ("extra.py", "import numpy\n"),
    "relative imports": ("extra.py", "from .missing import value\n"),
    "custom_generate": ("custom_generate/generate.py", "def generate(model):\n    pass\n"),
    "module by name": ("extra.py", PROBES["a module by its name"]),
    "byte code": ("extra.pyc", "x"),
    "byte code in a folder": ("__pycache__/extra.cpython-312.pyc", "x"),
    "pickle": ("pytorch_model.bin", "x"),
    "name of another script": ("m\u043edel.py", "x = 1\n"),
    "code of another repository": ("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["a/b--c.D", null]}}'),
    "code of another repository, inside": (
        "processor_config.json",
        '{"image_processor": {"auto_map": {"AutoImageProcessor": "/a/path--b.C"}}}',
    ),
    "code of another repository, to generate": ("generation_config.json", '{"custom_generate": "a/b"}'),
    "a base of a folder with weights": ("config.json", '{"base_model_name_or_path": "/a/path"}'),
    "encoding": ("extra.py", "# coding: utf-7\nx = 1\n"),
    "hidden evaluation": (".eval_results/.x.yaml", "[]"),
    "shards that are missing": ("model.safetensors.index.json", '{"weight_map": {"a": "model-2.safetensors"}}'),
    "shards elsewhere": ("model.safetensors.index.json", '{"weight_map": {"a": "../model.safetensors"}}'),
    "two names of the model": (
        "README.md",
        "".join(
            f"```python\nfrom transformers import AutoConfig\n"
            f"AutoConfig.from_pretrained('{name}', trust_remote_code=True)\n```\n"
            for name in ("me/model", "another/model")
        ),
    ),
    "hidden file": (".env", "TOKEN=x"),
    "block of the card that loads": (
        "README.md",
        "```python\nfrom transformers import AutoConfig\n"
        "AutoConfig.from_pretrained('/a/path', trust_remote_code=True)\n```\n",
    ),
    "block of the card": ("README.md", "```python\nimport os\nos.system('id')\n```\n"),
    "extension module": ("extra.so", "x"),
    "weights that are text": ("model-2.safetensors", "hf_token"),
    "pointer of Git LFS": ("model-2.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
    "JSON that is none": ("tokenizer.json", "x"),
    "text that is none": ("merges.txt", "\0"),
    "picture that is none": ("assets/a.png", "x"),
}


# What `check` says of those faults that `check_classes` finds.
NAMED = {
    "code of another repository": "`a/b--c.D` is named",
    "code of another repository, inside": "`/a/path--b.C` is named",
    "code of another repository, to generate": "generation_config.json: `custom_generate` is 'a/b'",
}


@pytest.mark.parametrize("name", FAULTS)
def test_nothing_runs_after_a_fault(tmp_path, monkeypatch, name):
    path, text = FAULTS[name]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "flashvid_qwen2_5_vl"}))
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    monkeypatch.setattr(Workplace, "run", lambda *_, **__: pytest.fail("it ran"))
    # All other guards pass, so that this fault alone stops the run.
    find = checking.check_classes
    guards = [check for check in checking.CHECKS if check.is_guard or check.runs_code]
    if name not in NAMED:
        guards = [check for check in guards if check.find_faults is not find]
    monkeypatch.setattr(checking, "CHECKS", guards)
    (tmp_path / path).parent.mkdir(exist_ok=True)
    if name == "a base of a folder with weights":
        text = json.dumps({"model_type": "flashvid_qwen2_5_vl"} | json.loads(text))
    (tmp_path / path).write_text(text)
    results = checking.check_folder(tmp_path)
    if name in NAMED:  # other faults of `check_classes` stop this folder too
        assert NAMED[name] in "".join(result.message for result in results)
    assert "failed" in {result.status for result in results}
    assert {result.status for result in results if result.title in {c.title for c in guards if c.runs_code}} == {
        "skipped"
    }


def test_links_are_faults(tmp_path):
    (tmp_path / "config.json").symlink_to("/etc/hostname")
    (tmp_path / "assets").symlink_to("/etc")
    (result,) = (checking.run_check(c, checking.HubFolder(tmp_path)) for c in checking.CHECKS[:1])
    assert result.status == "failed" and len(re.findall("is a link", result.message)) == 2


@pytest.mark.parametrize("base", ["/etc", "../base", "..", "./base", "~/base", "a/b/c", "file:///etc", "a\\b", ""])
def test_paths_are_no_base(base):
    assert not is_hub_id(base)


def test_a_folder_here_is_no_base(tmp_path, monkeypatch):
    (tmp_path / "acme" / "base").mkdir(parents=True)
    assert is_hub_id("acme/base")
    monkeypatch.chdir(tmp_path)
    assert not is_hub_id("acme/base")


def test_yaml_that_explodes():
    text = "a: &a [x, x]\n" + "".join(f"{new}: &{new} [*{old}, *{old}]\n" for old, new in pairwise("abcdefg"))
    with pytest.raises(Exception, match=r"the alias `\*a` is not allowed"):
        read_yaml(text)
    assert read_yaml("a: [1]") == {"a": [1]}


def test_a_block_may_save_under_the_name_of_the_folder(tmp_path):
    """What it saves goes to a copy."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file({"weight": torch.zeros(1)}, folder / "model.safetensors")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with workplace() as place:
        place.add_folder("name/of-it", folder)
        copy = place.directory / "name" / "of-it"
        assert {path.name: path.read_bytes() for path in copy.iterdir()} == {p.name: b for p, b in before.items()}
        (copy / "config.json").write_text("changed")
        save_file({"weight": torch.ones(1)}, copy / "model.safetensors")
        assert (copy / "model.safetensors").read_bytes() != before[folder / "model.safetensors"]
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
