"""The conversation format as jinja, for `chat_template` in a tokenizer folder. `render.py` says exactly the same.

ChatML with Qwen2-VL's default system message; a picture or clip is one pad between its markers, which the caller
widens to the number of visual tokens. Beside `messages` it takes `tools`, `parallel_calls` (agents.py) and
`add_vision_id`, as Qwen2-VL's own template names it. One text without newlines outside expressions, because Hugging
Face renders with `trim_blocks` and `lstrip_blocks`, which eat real ones.
"""

from data.encoding import agents, grounding

DEFAULT_SYSTEM = "You are a helpful assistant."

_TEXTS = {
    "default_system": DEFAULT_SYSTEM,
    "ref_start": grounding.REF_START,
    "ref_end": grounding.REF_END,
    "box_start": grounding.BOX_START,
    "box_end": grounding.BOX_END,
    "tools_head": "\n\n" + agents.TOOLS_HEAD,
    "as_json": agents.AS_JSON,
    "as_code": agents.AS_CODE,
    "code_tool": agents.CODE_TOOL,
    "fence": agents.FENCE,
    "one_before": agents.ONE_CALL[0],
    "one_after": agents.ONE_CALL[1],
    "several_before": agents.SEVERAL_CALLS[0],
    "several_after": agents.SEVERAL_CALLS[1],
    "function": f"{agents.FUNCTION}: ",
    "args": f"\n{agents.ARGS}: ",
    "result": f"\n{agents.RESULT}: ",
    "return": f"\n{agents.RETURN}",
}


def _set(name: str, text: str) -> str:
    quoted = text.encode("unicode_escape").decode("ascii").replace("'", "\\'")
    return "{% set text_" + name + " = '" + quoted + "' %}"


_PARTS = (
    "{% set shown = namespace(image=0, video=0) %}"
    "{% macro place(value, side) %}{{ [(value * 1000 / side + 0.5) | int, 999] | min }}{% endmacro %}"
    "{% macro box(b, scale) %}"
    "{% set w = scale if scale is number else scale[0] %}{% set h = scale if scale is number else scale[1] %}"
    "{{ text_box_start ~ '(' ~ place(b[0], w) ~ ',' ~ place(b[1], h) ~ '),(' }}"
    "{{ place(b[2], w) ~ ',' ~ place(b[3], h) ~ ')' ~ text_box_end }}"
    "{% endmacro %}"
    "{% macro show(content) %}"
    "{% if content is string %}{{ content }}"
    "{% elif content %}{% for part in content %}"
    "{% if part['type'] == 'image' %}{% set shown.image = shown.image + 1 %}"
    "{% if add_vision_id %}{{ 'Picture ' ~ shown.image ~ ': ' }}{% endif %}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% elif part['type'] == 'video' %}{% set shown.video = shown.video + 1 %}"
    "{% if add_vision_id %}{{ 'Video ' ~ shown.video ~ ': ' }}{% endif %}"
    "{{ '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{% elif part['type'] == 'ref' %}{{ text_ref_start ~ part['text'] ~ text_ref_end }}"
    "{% elif part['type'] == 'box' %}{{ box(part['box'], part['scale']) }}"
    "{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% endmacro %}"
)
_TOOLS = (
    "{% macro list_tools() %}{{ text_tools_head }}"
    "{% for tool in tools %}{% set f = tool['function'] %}{% if not loop.first %}{{ '\\n\\n' }}{% endif %}"
    "{{ '### ' ~ f['name'] ~ '\\n\\n' ~ f['name'] ~ ': ' ~ f['description'] ~ ' Parameters: ' }}"
    "{{ f['parameters'] | tojson }}{{ ' ' ~ (text_as_code if f['name'] == text_code_tool else text_as_json) }}"
    "{% endfor %}"
    "{% set names = tools | map(attribute='function.name') | join(',') %}"
    "{{ (text_several_before if parallel_calls else text_one_before) ~ names }}"
    "{{ text_several_after if parallel_calls else text_one_after }}"
    "{% endmacro %}"
    "{% macro call(f) %}"
    "{% set a = f['arguments'] if f['arguments'] is string else f['arguments'] | tojson %}"
    "{{ text_function ~ f['name'] ~ text_args }}{% if a[:3] == text_fence %}{{ '\\n' }}{% endif %}{{ a }}"
    "{% endmacro %}"
)
# `turn.open`: results were written, and the assistant goes on in the same turn. `turn.results`: they follow its calls.
_MESSAGES = (
    "{% set turn = namespace(open=false, results=false) %}"
    "{% for message in messages %}"
    "{% set next = '' if loop.last else loop.nextitem['role'] %}"
    "{% if loop.first %}{{ '<|im_start|>system\\n' }}"
    "{% if message['role'] == 'system' %}{{ show(message['content']) }}{% else %}{{ text_default_system }}{% endif %}"
    "{% if tools %}{{ list_tools() }}{% endif %}"
    "{{ '<|im_end|>\\n' }}{% endif %}"
    "{% if loop.first and message['role'] == 'system' %}"
    "{% elif turn.results and message['role'] == 'tool' %}"
    "{{ text_result }}{{ show(message['content']) }}"
    "{% if next != 'tool' %}{{ text_return }}{% set turn.results = false %}"
    "{% set turn.open = next == 'assistant' or (loop.last and add_generation_prompt) %}"
    "{% if not turn.open %}{{ ': <|im_end|>\\n' }}{% endif %}{% endif %}"
    "{% else %}"
    "{{ ': ' if turn.open else '<|im_start|>' ~ message['role'] ~ '\\n' }}"
    "{{ show(message['content']) }}"
    "{% for one in message['tool_calls'] or [] %}"
    "{% if turn.open or message['content'] or not loop.first %}{{ '\\n' }}{% endif %}{{ call(one['function']) }}"
    "{% endfor %}"
    "{% set turn.open = false %}{% set turn.results = message['tool_calls'] and next == 'tool' %}"
    "{% if not turn.results %}{{ '<|im_end|>\\n' }}{% endif %}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt and not turn.open %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CHAT_TEMPLATE = "".join(_set(name, text) for name, text in _TEXTS.items()) + _PARTS + _TOOLS + _MESSAGES
