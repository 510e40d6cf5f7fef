"""The variables that a request may set in a model's chat template."""

from typing import Any

from jinja2.meta import find_undeclared_variables
from transformers.utils.chat_template_utils import _compile_jinja_template

# What `apply_chat_template` itself gives to a template.
_GIVEN = ("messages", "tools", "documents", "add_generation_prompt")


def find_variables(processor: Any) -> frozenset[str]:
    """The names of the variables of a processor's chat templates, without those that transformers sets.

    Args:
        processor: of a model; its `chat_template` may be missing, a template, or several by their names.
    """
    templates = getattr(processor, "chat_template", None) or ()
    found: set[str] = set()
    for template in templates.values() if isinstance(templates, dict) else [templates] if templates else ():
        environment = _compile_jinja_template(template).environment
        found |= find_undeclared_variables(environment.parse(template)) - environment.globals.keys()
    special = getattr(getattr(processor, "tokenizer", None), "special_tokens_map", {})
    return frozenset(found - special.keys() - set(_GIVEN))
