#!/usr/bin/env python3
"""Judge of the chat templates of server/text: rendering against jinja2, in the sandbox and with the
settings that `transformers` uses.

Whole templates in the styles of the families in use (tests/data/text/chat/*.jinja) are rendered for
several conversations, and a list of small snippets covers the language feature by feature. Where
jinja2 fails, we must fail; a raise_exception text must be the same.

  text_chat.py --tool BUILD/tests/text_tool [--write FILE]
"""
import argparse
import datetime
import json
import pathlib
import subprocess
import sys

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = pathlib.Path(__file__).resolve().parent
TEMPLATES = HERE.parent / "data" / "text" / "chat"


class Raised(jinja2.exceptions.TemplateError):
    """What raise_exception raises: its text is compared."""


class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


def raise_exception(message):
    raise Raised(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class Namespace(jinja2.utils.Namespace):
    """As transformers has it: no names with an underscore."""

    def __init__(*args, **kwargs):  # pylint: disable=no-method-argument
        attrs = dict(*args[1:], **kwargs)
        for name in attrs:
            Namespace.check(name)
        jinja2.utils.Namespace.__init__(args[0], attrs)

    def __setitem__(self, name, value):
        Namespace.check(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)

    @staticmethod
    def check(name):
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(name)


def environment():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                        extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["namespace"] = Namespace
    env.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return env


WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "The weather of a town, \"now\" & <later>",
    "parameters": {"type": "object", "properties": {
        "town": {"type": "string", "description": "Name of the town", "enum": ["Ölrún", "Bree"]},
        "days": {"type": "integer", "minimum": 0, "default": 1.5}}, "required": ["town"]}}}
CALL = {"id": "call_abc1234", "type": "function",
        "function": {"name": "get_weather", "arguments": {"town": "Bree", "days": 2}}}
CONVERSATIONS = [
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": "  Be brief.\n"}, {"role": "user", "content": "Hi {{ x }} <b>'q'</b>"},
     {"role": "assistant", "content": " Yes? "}, {"role": "user", "content": "näh 👩‍👩‍👧\n\n"}],
    [{"role": "user", "content": "Weather in Bree?"},
     {"role": "assistant", "content": "", "tool_calls": [CALL]},
     {"role": "tool", "name": "get_weather", "tool_call_id": "call_abc1234", "content": "{\"t\": 21.5}"},
     {"role": "assistant", "content": "<think>\nIt is warm.\n</think>\n\nWarm."},
     {"role": "user", "content": "Thanks"}],
    [{"role": "user", "content": [{"type": "text", "text": "part one "}, {"type": "text", "text": "two"}]}],
    [{"role": "system", "content": ""}, {"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
    [{"role": "developer", "content": "Rules"}, {"role": "user", "content": "q"},
     {"role": "assistant", "reasoning_content": "hm", "content": "r"}, {"role": "user", "content": "s"}],
    [{"role": "user", "content": "1"}, {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]},
     {"role": "tool", "tool_call_id": "call_abc1234", "content": "x"},
     {"role": "tool", "tool_call_id": "call_abc1234", "content": {"deep": [1, 2.0, None, True]}}],
    [{"role": "assistant", "content": "first"}, {"role": "user", "content": "second"}],
]
KWARGS = [{}, {"add_generation_prompt": True},
          {"add_generation_prompt": True, "tools": [WEATHER], "enable_thinking": False},
          {"tools": [WEATHER, WEATHER], "date_string": "26 Jul 2024", "enable_thinking": True,
           "documents": [{"title": "T", "text": "x\ny"}]}]


def contexts():
    for messages in CONVERSATIONS:
        for extra in KWARGS:
            base = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": False,
                    "bos_token": "<s>", "eos_token": "</s>", "date_string": "01 Jan 2025"}
            yield {**base, **extra}


SNIPPET_CONTEXT = {
    "a": 7, "b": -3, "f": 2.5, "s": "Hello, Wörld ", "e": "", "n": None, "t": True, "l": [3, 1, 2],
    "d": {"x": 1, "y": {"z": [10, 20]}, "items": "key", "k s": "v"}, "u": "ünï 日本",
    "people": [{"name": "Ann", "age": 30, "ok": True}, {"name": "bob", "age": 4, "ok": False},
               {"name": "Cy", "age": 30}],
    "multi": "one\ntwo\n\nthree", "nested": [[1, [2, [3]]], []], "big": 12345678901234, "words": "a b  c"}

EXPRESSIONS = r"""
a + b * 2 - 4 / 2
7 // 2 ~ '|' ~ -7 // 2 ~ '|' ~ 7 % -3 ~ '|' ~ -7 % 3 ~ '|' ~ 7.5 // 2 ~ '|' ~ -7.5 % 2
2 ** 3 ** 2
-2 ** 2
2 ** -1
1 / 3
1e20 ~ ' ' ~ 1e15 ~ ' ' ~ 1.0 ~ ' ' ~ 0.1 ~ ' ' ~ 1e-5 ~ ' ' ~ 123456789.125 ~ ' ' ~ 1_000
a < b < 100
1 < 2 < 3
a == 7 and not b == 7 or false
a is defined and zz is not defined
'x' in s ~ 'H' in s
3 in l and 9 not in l
'x' in d and 'q' not in d
not a
not not a
a if a > 3 else b
a if a > 30
'y' if e else 'n' if n else 'z'
[1, 2, 3][::-1]
s[::-1]
s[1:4]
s[-3:]
s[:-1]
l[1:]
l[5:]
l[-1]
u[4:]
u[::2]
s[10:2:-2]
l[0]
l[10]
l[10].x
d.x
d['x']
d.items
d['items']
d.y.z[1]
d.y['z'][0]
d['k s']
d.nope
d.nope.more
zz
zz.more
zz + 1
zz ~ 'x'
zz == yy
n.x
n
none == n
True and true
(1, 2)
(1,)
()
{'a': 1, 'b': [1, 'x', none, true, 1.5]}
{'q': 'it\'s', "w": "say \"x\"", 'both': "'\""}
['\n\t\\', 'é', '\x07', '​']
'a\nb' 'c'
'\u00e9\x41\q'
[1, 2] + [3]
(1, 2) + (3,)
'ab' * 3
[0] * 2
3 * 'ab'
true + 1
'a' + 1
'a' ~ 1 ~ none ~ true ~ 1.0
1 == 1.0
'1' == 1
[1, 2] == [1, 2.0]
{'a': 1} == {'a': 1}
[1, 2] < [1, 3]
'a' < 'b'
'a' < 1
none < 1
1 is number and 1.5 is float and 1 is integer and true is boolean
true is number
d is mapping and l is sequence and s is string and l is iterable
none is none
a is odd
b is even
9 is divisibleby 3
9 is divisibleby(2)
'abc' is lower
'ABC' is upper
a is eq 7
a is equalto(7)
a is gt 3
3 is in l
3 is in [1]
true is true and false is false
1 is true
a is sameas a
foo is callable
range is callable
range(5)|list
range(2, 10, 3)|list
range(5, 0, -2)|list
range(3)|sum
s|trim
s|trim('Hd ')
s|length
u|length
d|length
zz|length
l|join(', ')
l|join
people|join(', ', attribute='name')
s|upper
s|lower
'hello world-foo (bar) o\'neil'|title
'hello world-foo o\'neil'.title()
'hELLO wORLD'|capitalize
'straße'|upper
s|replace('l', 'L')
s|replace('l', 'L', 1)
s.replace('l', 'LL', 2)
'abc'.replace('', '-')
zz|default('dflt')
e|default('dflt')
e|default('dflt', true)
none|default('x')
zz|d
42|string ~ 'x'
'42'|int + 1
'4x'|int
'4x'|int(9)
'3.7'|int
3.99|int
' 12 '|int
'ff'|int(0, 16)
'1.5'|float
'x'|float
3|float
42.55|round
42.55|round(1)
42.551|round(1, 'floor')
42.551|round(1, 'ceil')
2.5|round
3.5|round|int
7|round
-5|abs
-5.5|abs
l|sort
l|sort(reverse=true)
['b', 'A', 'c']|sort
['b', 'A', 'c']|sort(case_sensitive=true)
people|sort(attribute='age')|map(attribute='name')|list
people|map(attribute='name')|join('-')
people|map(attribute='ok', default='?')|list
people|map(attribute='nope')|list
l|map('string')|list
['a', 'b']|map('upper')|list
['a,b', 'c']|map('replace', ',', ';')|list
people|selectattr('ok')|map(attribute='name')|list
people|selectattr('age', 'equalto', 30)|map(attribute='name')|list
people|rejectattr('ok', 'defined')|list|length
people|rejectattr('age', 'gt', 10)|map(attribute='name')|list
l|select('odd')|list
l|reject('odd')|list
[0, 1, '', 'x']|select|list
[0, 1, '', 'x']|reject|list
people|selectattr('zzz')
(people|selectattr('zzz')) is defined and (people|selectattr('zzz')|list) == []
'yes' if people|selectattr('zzz') else 'no'
people|selectattr('zzz')|first
people|first
l|last
s|first
[]|first
[]|last
d|items|list
d.items()|list
d|dictsort
{'b': 2, 'A': 1}|dictsort
{'b': 2, 'A': 1}|dictsort(true)
{'b': 1, 'a': 2}|dictsort(by='value')
{'b': 1, 'a': 2}|dictsort(false, 'key', true)
d.keys()|list
d|list
s|list
[1, 1, 2, 'a', 'A']|unique|list
[1, 5, 3]|max
[1, 5, 3]|min
[]|max
people|map(attribute='age')|sum
people|sum(attribute='age')
l|reverse|list
s|reverse
people|groupby('age')|list|length
multi|indent
multi|indent(2)
multi|indent(2, true)
multi|indent(2, true, true)
multi|indent('> ')
multi|indent(width=1, first=true)
'<a href="x">\'&</a>'|escape
'<a>'|e
'<a>'|safe
words|wordcount
words.split()
words.split(' ')
words.split(' ', 1)
words.rsplit(' ', 1)
'a--b--c'.split('--')
'a--b--c'.split('--')[-1]
'  a b  '.split(none, 1)
'  a b c '.rsplit(none, 1)
'a\nb\r\nc'.splitlines()
s.strip()
s.strip('Hd ')
'xxabcxx'.lstrip('x')
'xxabcxx'.rstrip('x')
s.startswith('Hell')
s.endswith('x')
s.startswith(('x', 'He'))
s.find('W')
s.find('zzz')
u.find('日')
'abcabc'.rfind('b')
'aaa'.count('a')
'abc'.count('')
'prefix-x'.removeprefix('prefix-')
'x-suffix'.removesuffix('-suffix')
'-'.join(['a', 'b'])
'-'.join([1])
'12'.isdigit()
'ab1'.isalpha()
'ab1'.isalnum()
' \t'.isspace()
'AB'.isupper()
'hello'.upper().lower().capitalize()
d.get('x')
d.get('q')
d.get('q', 'dd')
d.get('y').get('z')
l.index(1)
l.count(1)
l.append(4)
l.append
d.update({'a': 1})
d.pop('x')
s.nope
s.nope()
a.real
s.__class__
''.__class__.__mro__
l.__len__
d.__class__
d|tojson
d|tojson(indent=2)
d|tojson(indent=4)
nested|tojson(indent=1)
[]|tojson(indent=2) ~ {}|tojson(indent=2)
u|tojson
u|tojson(ensure_ascii=true)
'👩 "\\ \n\t'|tojson
'👩 \x7f\x1f'|tojson(ensure_ascii=true)
'<&>\''|tojson
d|tojson(separators=(',', ':'))
d|tojson(indent=2, separators=(';', '='))
{'b': 1, 'a': {'d': 1, 'c': 2}}|tojson(sort_keys=true)
1.0|tojson ~ 1e100|tojson ~ 1|tojson ~ true|tojson ~ none|tojson
{1: 2, none: 3, true: 4, 1.5: 5}|tojson
zz|tojson
(1, 2)|tojson
namespace(a=1).a
namespace(a=1).b
namespace({'q': 2}, a=1).q
namespace(_a=1)
dict(a=1, b=2)
dict({'c': 1}, a=2)
raise_exception('boom ' ~ a)
raise_exception("it's")
a.b.c
l.x
big
big * 1000
-a
+a
-(a + b)
-f
a|abs - 1
a | string | length
(a + 1) | string ~ 'x'
-1|abs
'a' 'b'|upper
{'a': {'b': 1}}.a.b
[[1, 2], [3]][0][1]
'abc'[1]
'%s'|length
'x'|nofilter
x is notest
1 +
(1
[1, 2
{'a' 1}
'abc
a b
a.
a[
""
 
l.copy()
'{} and {}'.format(a, s)
'{1}{0}{1}'.format('x', 'y')
'{x}-{y}'.format(x=1, y=none)
'{{{}}}'.format(5)
'{0.x}{0[y][z][1]}'.format(d)
'{:>6}|{:<6}|{:^6}|{:*^7}'.format('ab', 'cd', 'ef', '日本')
'{:.2}|{:5.1}|{:s}'.format('hello', 'xyz', 'q')
'{:5d}|{:<5d}|{:05d}|{:+d}|{: d}|{:,}|{:_}'.format(42, 42, -42, 42, 42, 1234567, 1234567)
'{:x}|{:X}|{:o}|{:b}|{:#x}|{:08b}'.format(255, 255, 8, 5, 255, 5)
'{:.2f}|{:8.3f}|{:e}|{:g}|{:.1%}|{:,.2f}|{:010.2f}'.format(3.14159, 2.5, 12345.678, 0.0001, 0.256, 1234567.891, -3.5)
'{:.2f}|{:5}|{:>5}|{}'.format(3, 1.5, 7, 1e20)
'{!r}|{!s}|{!r:>6}'.format('a', 'b', 'c')
'{}|{}|{}|{}'.format([1, 'a'], {'k': none}, true, 1.0)
'{:d}|{:5}'.format(true, false)
'{}'.format(zz)
'{}{}'.format(1)
'{} {0}'.format(1)
'{nope}'.format(x=1)
'{'.format(1)
'}'.format(1)
'{0'.format(1)
'{:d}'.format('x')
'{:d}'.format(1.5)
'{:>3}'.format(none)
'{.zzz}'.format(d)
'{0[zzz]}'.format(d)
'{!x}'.format(1)
'{:,.3f}'.format(0.5) ~ '{:=+6d}'.format(3)
'plain'.format()
d.copy() == d
people[0].name ~ people[-1]['name']
people|map(attribute='name')|map('lower')|join(',')
people|selectattr('name', 'in', ['Ann', 'Cy'])|map(attribute='age')|list
l|map('int')|sum
['1', '2']|map('int')|list
[['a', 1], ['b', 2]]|map('first')|list
[['a', 1], ['b', 2]]|map(attribute=1)|list
[['a', 1], ['b', 2]]|map(attribute='1')|list
loop
self
caller
varargs
1 if 1 is not none else 2
'a' is not string
not a is string
a is string or b is number
a in [7] is true
l|length > 2 and l|first == 3
(l|length) is odd
'x' ~ (1 if false)
'x' ~ (1 if false) ~ 'y'
1,2
a,
none|upper
none|length
none|trim
true|string|lower
5|length
l|upper
'a' * -1
[1] * 0
0.1 + 0.2
1e400
5 // 0
5 % 0
5 / 0
5.0 / 0
'a' - 'b'
{}['a']
{}.a
{'a': 1}[['x']]
[1, 2]['a']
'abc'['x']
loop.index
"{{ x }}"
'{% if %}'
{'a': {}}
{{'a': 1}}
""" + "\n'tab\there'"

STATEMENTS = [
    "{% for x in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}"
    "{{ loop.last }}{{ loop.length }}{{ loop.previtem }}{{ loop.nextitem }}{{ loop.depth }};{% endfor %}",
    "{% for x in [] %}x{% else %}none{% endfor %}",
    "{% for x in zz %}x{% else %}none{% endfor %}",
    "{% for x in none %}x{% endfor %}",
    "{% for x in 5 %}x{% endfor %}",
    "{% for c in 'añb' %}[{{ c }}]{% endfor %}",
    "{% for k in d %}{{ k }},{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}",
    "{% for (k, v) in d|dictsort %}{{ k }}={{ v }};{% endfor %}",
    "{% for a, b in [(1, 2), [3, 4]] %}{{ a }}{{ b }}{% endfor %}{{ a }}",
    "{% for a, b in [(1, 2, 3)] %}{{ a }}{% endfor %}",
    "{% for p in people if p.ok %}{{ loop.index }}/{{ loop.length }}{{ p.name }}{% else %}no{% endfor %}",
    "{% for p in people if p.age > 100 %}x{% else %}no{% endfor %}",
    "{% for x in l %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% if x == 2 %}{% break %}{% endif %}{% endfor %}",
    "{% for x in l %}{% for y in l %}{% if y == 1 %}{% break %}{% endif %}{{ x }}{{ y }} {% endfor %}{{ loop.index }}{% endfor %}",
    "{% for x in l %}{{ loop.cycle('a', 'b') }}{% endfor %}",
    "{% for x in [1, 1, 2] %}{{ loop.changed(x) }}{% endfor %}",
    "{% for x in nested recursive %}{% if x is iterable and x is not string %}[{{ loop(x) }}]{% else %}"
    "{{ x }}:{{ loop.depth }}{% endif %}{% endfor %}",
    "{% for x in l %}{{ loop(x) }}{% endfor %}",
    "{% set x = 1 %}{% for i in l %}{% set x = x + i %}{{ x }},{% endfor %}{{ x }}",
    "{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }}",
    "{% for i in l %}{% if i == 3 %}{% set y = i %}{% endif %}{{ y }};{% endfor %}",
    "{% set ns = namespace(c=0) %}{% for i in l %}{% set ns.c = ns.c + i %}{% endfor %}{{ ns.c }}",
    "{% set ns = namespace() %}{% set ns.x = 'q' %}{{ ns.x }}{{ ns.y }}",
    "{% set ns = namespace() %}{% set ns._x = 'q' %}{{ ns._x }}",
    "{% set d2 = {'a': 1} %}{% set d2.a = 2 %}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set c = 1, 2 %}{{ c }}",
    "{% set (p, q) = (1, 2) %}{{ p }}{{ q }}",
    "{% set x %}a {{ a }}\nb{% endset %}[{{ x }}]{{ x|length }}",
    "{% set x | upper | replace('A', '_') %}abca{% endset %}{{ x }}",
    "{% set x %}{% set inner = 1 %}{% endset %}{{ inner }}",
    "{% macro m(a, b=2, c='x') %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ m(1) }}{{ m(1, 3) }}{{ m(1, c=5) }}{{ m(b=1) }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(z=2) }}",
    "{% macro m() %}{{ x }}{% endmacro %}{% set x = 5 %}{{ m() }}",
    "{% set x = 1 %}{% macro m() %}{% set x = 2 %}{{ x }}{% endmacro %}{{ m() }}{{ x }}",
    "{% macro fact(n) %}{{ n * (fact(n - 1)|int) if n > 1 else 1 }}{% endmacro %}{{ fact(5) }}",
    "{% macro inf(n) %}{{ inf(n) }}{% endmacro %}{{ inf(1) }}",
    "{% macro m() %}  a  {% endmacro %}[{{ m()|trim }}][{{ m() }}]",
    "{% macro w(t) %}<{{ t }}>{{ caller() }}</{{ t }}>{% endmacro %}{% call w('b') %}in {{ a }}{% endcall %}",
    "{% macro each(l) %}{% for i in l %}{{ caller(i) }},{% endfor %}{% endmacro %}{% call(x) each(l) %}{{ x * 2 }}{% endcall %}",
    "{% macro m() %}{{ caller is defined }}{% endmacro %}{{ m() }}{% call m() %}{% endcall %}",
    "{% filter upper %}abc {{ s }}{% endfilter %}",
    "{% filter replace('a', 'b')|upper %}aXa{% endfilter %}",
    "{% with x = 1, y = 2 %}{{ x }}{{ y }}{% endwith %}{{ x }}",
    "{% generation %}gen {{ a }}{% set q = 1 %}{% endgeneration %}{{ q }}",
    "{% if a %}1{% elif b %}2{% else %}3{% endif %}",
    "{% if e %}1{% elif n %}2{% else %}3{% endif %}",
    "{% if e %}1{% elif t %}2{% elif s %}4{% endif %}{% if e %}x{% endif %}",
    "{% if zz %}a{% endif %}{% if not zz %}b{% endif %}",
    "{% raw %}{{ not }} {% if %}{% endraw %}x",
    "  {% raw %}\n a {% endraw %}\n x",
    "{%- raw -%}\n a {%- endraw -%}\n x",
    "a {# comment #} b\n{# line #}\nc\n   {# indented #}\nd",
    "a {#- strip -#} b {#+ keep #} c",
    "a\n  {% if true %}\n    b\n  {% endif %}\nc\n",
    "a\n  {%- if true -%}\n    b\n  {%- endif -%}\nc\n",
    "a\n  {%+ if true +%}\n    b\n  {%+ endif %}\nc\n\n",
    "a\n  {{ a }}\n  {{- a -}}\n  {{ a }}\nb",
    "a {% if true %} b {% endif %} c",
    "x\n\t {% set q = 1 %}\t\ny{% set r = 2 %}\n\nz",
    "\n{% if true %}\n\nq\n{% endif %}\n\n",
    "{% if true %}  {% if true %}\n  x{% endif %}{% endif %}",
    "{{ a }}\n{{ b }}\n\n",
    "a\r\nb\rc\n{{ '\r\n'|length }}{{ multi }}\r\n",
    "{% set x = ['a',\n 'b',] %}{{ x }}\n{{\n a\n}}",
    "{{ '}}' }}{{ \"%}\" }}{{ {'a': {'b': 1}}['a']['b'] }}{{ {'a': {}} }}",
    "{% print a, b %}",
    "{ {% if true %}}{% endif %} {x} }} %} #}",
    "{% include 'x' %}", "{% extends 'x' %}", "{% import 'x' as y %}", "{% block x %}{% endblock %}", "{% do 1 %}",
    "{% nope %}", "{% if %}{% endif %}", "{% if a %}", "{% endif %}", "{% for x %}{% endfor %}", "{{ a", "{% if a", "{# x",
    "{% break %}", "{% for x in l %}{% endfor %}{% continue %}", "{% set %}", "{% set 1 = 2 %}", "{% raw %}x",
    "{% for m in messages %}x{% endfor %}",
    "{% set j = joiner(' | ') %}{% for x in l %}{{ j() }}{{ x }}{% endfor %}",
    "{%- for p in people -%}\n{{ p.name }}\n{%- if not loop.last %}, {% endif -%}\n{%- endfor %}",
    "{% set x = people|map(attribute='name') %}{{ x|list }}{{ x|list }}",
    "{% if l is iterable %}{% if l[0] is number %}n{% endif %}{% endif %}",
    "{{ l|map('upper')|list if false else 'k' }}",
    "{{ strftime_now('%d %b %Y') }}",
    "{{ range(200000)|list|length }}",
    "{% set l2 = l + [4] %}{{ l2 }}{{ l }}",
    "{% for i in range(3) %}{% for j in range(i) %}{{ loop.index }}{% endfor %}|{{ loop.index }}{% endfor %}",
    "{% set loop_messages = l[1:] %}{{ loop_messages }}{% set content = s if s is string else '' %}{{ content }}",
    "{% macro a_m(x) %}{% if x %}{{ x }}{{ a_m(x[1:]) }}{% endif %}{% endmacro %}{{ a_m('abc') }}",
    "{% set ns = namespace(found=false) %}{% for m in l %}{% if m == 1 and not ns.found %}{% set ns.found = true %}"
    "{{ 'hit' }}{% endif %}{% endfor %}{{ ns.found }}",
    "{{ [ns for ns in l] }}", "{{ lambda x: x }}", "{{ a; b }}", "{{ a := 1 }}", "{{ *l }}",
]


def expected(env, template, context):
    try:
        return {"text": env.from_string(template).render(**context)}
    except Raised as e:
        return {"raised": str(e)}
    except RecursionError:
        return {"error": "RecursionError"}
    except Exception as e:  # pylint: disable=broad-except
        return {"error": f"{type(e).__name__}: {e}"}


def all_cases():
    for path in sorted(TEMPLATES.glob("*.jinja")):
        for context in contexts():
            yield path.stem, path.read_text(encoding="utf-8"), context
    for line in EXPRESSIONS.split("\n"):
        yield "expression", "{{ " + line + " }}", SNIPPET_CONTEXT
    for text in STATEMENTS:
        yield "statement", text, SNIPPET_CONTEXT


def agree(want, got):
    if "text" in want:
        return got.get("text") == want["text"]
    if "raised" in want:
        return got.get("error") == want["raised"]
    return "error" in got


# Where we differ from jinja2 on purpose: what has no use in a chat template.
REFUSED = {
    "{{ self }}", "{{ d.items }}", "{{ a.real }}", "{{ people|selectattr('zzz') }}", "{% block x %}{% endblock %}",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tool", required=True, help="the text_tool program")
    parser.add_argument("--write", metavar="FILE", help="also write the cases as a golden file")
    args = parser.parse_args()
    env = environment()
    rows = [(n, t, c, expected(env, t, c)) for n, t, c in all_cases()]
    lines = "".join(json.dumps({"template": t, "context": c}) + "\n" for _, t, c, _ in rows)
    done = subprocess.run([args.tool, "chat"], input=lines.encode(), capture_output=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{args.tool} failed: {done.stderr.decode(errors='replace')[-3000:]}")
    answers = [json.loads(line) for line in done.stdout.split(b"\n") if line]
    wrong, templates = 0, {}
    for (name, template, _, want), got in zip(rows, answers, strict=True):
        templates.setdefault(name, [0, 0])
        templates[name][0] += 1
        if not agree(want, got) and template not in REFUSED:
            wrong += 1
            templates[name][1] += 1
            print(f"{name}: {template[:200]!r}\n  want {str(want)[:600]}\n  got  {str(got)[:600]}")
    for name, (count, bad) in templates.items():
        print(f"{name}: {count} cases, {bad} differ")
    if args.write:
        write(args.write, rows)
    sys.exit(1 if wrong else 0)


def write(path, rows):
    """Whole templates by name, the snippets with their text; the date of today is left out."""
    out, shared = [], list(contexts())
    for name, template, context, want in rows:
        if "strftime_now" in template or template in REFUSED:
            continue
        row = {"name": name, "want": want if "error" not in want else {"error": True}}
        if name in ("expression", "statement"):
            row["template"] = template
        else:
            row["context"] = shared.index(context)
        out.append(row)
    golden = {"snippet_context": SNIPPET_CONTEXT, "contexts": shared, "rows": out}
    with open(path, "w", encoding="utf-8") as f:
        json.dump(golden, f, ensure_ascii=False, separators=(",", ":"))
        f.write("\n")


if __name__ == "__main__":
    main()
