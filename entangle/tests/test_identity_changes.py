"""Any change of the code, or of what it reads, changes the key, also if it is made in place after
the key was computed."""

from __future__ import annotations

from typing import Any

import pytest

from entangle._shared.identity import identify

#: A program with a function `f`, and successive changes to it: no two keys are the same.
CHANGES = {
    "a keyword default in place": ["def h(*,n=1): return n\ndef f(x): return h()", "h.__kwdefaults__['n']=2", "h.__kwdefaults__={'n':3}"],
    "a keyword default that is new": ["def h(*, n=1, m): return n\ndef f(x): return h()", "h.__kwdefaults__['m']=2"],
    "code swap": ["def h(): return 1\ndef f(x): return h()", "h.__code__=(lambda: 2).__code__"],
    "closure cell": [
        "def mk():\n  n=1\n  def h(): return n\n  def s(v):\n    nonlocal n\n    n=v\n  return h,s\nh,s=mk()\ndef f(x): return h()",
        "s(2)",
        "s([1])",
        "s([2])",
    ],
    "class in dict": [
        "class A:\n  def m(self): return 1\nD={'a':A}\ndef f(x): return D['a']().m()",
        "A.m=lambda self: 2",
        "class A:\n  def m(self): return 1\n  def z(self): return 4\nD['a']=A",
    ],
    "metaclass attr": ["class M(type):\n  n=1\nclass A(metaclass=M): pass\ndef f(x): return A.n", "M.n=2"],
    "mixin base changed": ["class A:\n  n=1\nclass B:\n  n=2\nclass C(A): pass\ndef f(x): return C.n", "C.__bases__=(B,)"],
    "nested class": ["class A:\n  class B:\n    n=1\ndef f(x): return A.B.n", "A.B.n=2"],
    "list of functions": ["def a(): return 1\nL=[a]\ndef f(x): return L[0]()", "def a(): return 2\nL[0]=a"],
    "object with func attr": ["class K: pass\nk=K()\nk.g=lambda: 1\ndef f(x): return k.g()", "k.g=lambda: 2"],
    "instance slots": ["class K:\n  __slots__=('a',)\nk=K()\nk.a=1\ndef f(x): return k.a", "k.a=2"],
    "dict subclass": ["class D(dict): pass\nd=D(a=1)\ndef f(x): return d['a']", "d['a']=2", "d.extra=1"],
    "set subclass": ["class D(set): pass\nd=D([1])\ndef f(x): return d", "d.add(2)"],
    "int subclass": ["class D(int): pass\nd=D(1)\ndef f(x): return d", "d=D(2)", "d.extra=1"],
    "str subclass key": ["class D(str): pass\nd={D('a'):1}\ndef f(x): return d", "d={'a':1}"],
    "staticmethod": ["class K:\n  @staticmethod\n  def s(): return 1\ndef f(x): return K.s()", "K.s=staticmethod(lambda: 2)"],
    "classmethod": ["class K:\n  @classmethod\n  def s(c): return 1\ndef f(x): return K.s()", "K.s=classmethod(lambda c: 2)"],
    "property setter": [
        "class K:\n  @property\n  def s(self): return 1\n  @s.setter\n  def s(self,v): self.q=v\ndef f(x): return K()",
        "K.s=K.s.setter(lambda s,v: 3)",
    ],
    "bound method global": ["class K:\n  n=1\n  def m(self): return self.n\nk=K()\nm=k.m\ndef f(x): return m()", "k.n=2"],
    "partial of method": [
        "import functools\nclass K:\n  n=1\n  def m(self): return self.n\nk=K()\nm=functools.partial(k.m)\ndef f(x): return m()",
        "k.n=2",
    ],
    "partialmethod": [
        "import functools\nclass K:\n  def m(self,a): return a\n  p=functools.partialmethod(m,1)\ndef f(x): return K().p()",
        "K.p=functools.partialmethod(K.m,2)",
    ],
    "what lru_cache wraps": [
        "import functools\n@functools.lru_cache\ndef h(): return 1\ndef f(x): return h()",
        "@functools.lru_cache\ndef h(): return 2",
        "h.__wrapped__.__code__=(lambda: 5).__code__",
    ],
    "cached_property": [
        "import functools\nclass K:\n  @functools.cached_property\n  def p(self): return 1\ndef f(x): return K().p",
        "K.p=functools.cached_property(lambda s: 2)",
    ],
    "wrapped by library deco": [
        "import contextlib\n@contextlib.contextmanager\ndef cm(): yield 1\ndef f(x):\n  with cm() as c: return c",
        "@contextlib.contextmanager\ndef cm(): yield 2",
    ],
    "operator itemgetter": ["import operator\ng=operator.itemgetter(1)\ndef f(x): return g", "g=operator.itemgetter(2)"],
    "regex flags": ["import re\nr=re.compile('a')\ndef f(x): return r", "r=re.compile('a',re.I)"],
    "frozenset const": ["def f(x): return x in {1,2}", "def f(x): return x in {1,3}"],
    "conversions": ["def f(x): return f'{x!r}'", "def f(x): return f'{x!s}'", "def f(x): return f'{x:>3}'"],
    "comparisons": [
        "def f(x): return x<1",
        "def f(x): return x>1",
        "def f(x): return x<=1",
        "def f(x): return x==1",
        "def f(x): return x!=1",
        "def f(x): return x is abs",
        "def f(x): return x is not abs",
        "def f(x): return x in (1,)",
        "def f(x): return x not in (1,)",
    ],
    "operators": [*[f"def f(x): return x{o}3" for o in ("+", "-", "*", "/", "//", "%", "**", "<<", ">>", "&", "|", "^", "@")]],
    "operators of one value": [*[f"def f(x): return {o}x" for o in ("+", "-", "~", "not ", "")]],
    "and, or, if": [
        "def f(x): return x and 1",
        "def f(x): return x or 1",
        "def f(x): return 1 if x else x",
        "def f(x): return x if x is None else 1",
        "def f(x): return x if x is not None else 1",
    ],
    "loops": [
        "def f(x):\n while x: x-=1\n return x",
        "def f(x):\n while not x: x-=1\n return x",
        "def f(x):\n while True: x-=1\n return x",
        "def f(x):\n for i in x: pass\n return x",
        "def f(x):\n for i in x: break\n return x",
        "def f(x):\n for i in x: return 1\n return x",
    ],
    "handlers": [
        "def f(x):\n try: return x()\n except ValueError: return 1",
        "def f(x):\n try: return x()\n except KeyError: return 1",
        "def f(x):\n try: return x()\n finally: return 1",
        "def f(x):\n y=x()\n try: return y\n except ValueError: return 1",
        "def f(x):\n try: y=x()\n except ValueError: return 1\n return y",
    ],
    "what stands in a with block": ["def f(x):\n with x: return 1", "def f(x):\n with x: pass\n return 1"],
    "call forms": [
        "def f(x): return x(1)",
        "def f(x): return x(a=1)",
        "def f(x): return x(b=1)",
        "def f(x): return x(*[1])",
        "def f(x): return x(**{'a':1})",
        "def f(x): return x(1,2)",
        "def f(x): return x.a(1)",
        "def f(x): return x.b(1)",
        "def f(x): return x.a",
        "def f(x): x.a=1",
        "def f(x): del x.a",
    ],
    "kinds of parameters": [
        "def f(x,y=1): return 1",
        "def f(x,*,y=1): return 1",
        "def f(x,/,y=1): return 1",
        "def f(x,*y): return 1",
        "def f(x,**y): return 1",
    ],
    "kinds of functions": ["def f(x): yield x", "def f(x): return (yield x)", "async def f(x): return x", "async def f(x): yield x"],
    "local swap": ["def f(x):\n a=x; b=1\n return a-b", "def f(x):\n a=x; b=1\n return b-a"],
    "global decl": ["N=0\ndef f(x):\n N=1\n return N", "def f(x):\n global N\n N=1\n return N"],
    "del/unpack": ["def f(x): a,b=x; return a", "def f(x): a,*b=x; return a", "def f(x): *a,b=x; return a", "def f(x): b,a=x; return a"],
    "patterns": [
        "def f(x):\n match x:\n  case [1,y]: return y",
        "def f(x):\n match x:\n  case [1,*y]: return y",
        "def f(x):\n match x:\n  case {'a':y}: return y",
    ],
    "what super finds": [
        "class A:\n  def m(s): return 1\nclass B(A):\n  def m(s): return super().m()\ndef f(x): return B().m()",
        "A.m=lambda s: 2",
    ],
    "lambda default": ["h=lambda a=1: a\ndef f(x): return h()", "h=lambda a=2: a"],
    "inner import other": ["def f(x):\n import math\n return math.sin(x)", "def f(x):\n import cmath as math\n return math.sin(x)"],
    "tuple with mutable": ["T=([1],)\ndef f(x): return T", "T[0].append(2)"],
    "default mutable": ["def h(a=[1]): return a\ndef f(x): return h()", "h.__defaults__[0].append(2)"],
    "an object that is a default": ["class K: pass\nk=K()\nk.v=1\ndef h(a=k): return a\ndef f(x): return h()", "k.v=2"],
    "enum method": ["import enum\nclass E(enum.Enum):\n  A=1\n  def m(self): return 1\ndef f(x): return E.A.m()", "E.m=lambda s: 2"],
    "a flag": ["import enum\nclass E(enum.Flag):\n  A=1\n  B=2\nv=E.A\ndef f(x): return v", "v=E.B", "v=E.A|E.B"],
    "exception": ["class Er(Exception):\n  n=1\ndef f(x): raise Er('a')", "Er.n=2"],
    "an exception": ["e=ValueError('a')\ndef f(x): raise e", "e=ValueError('b')"],
    "defaultdict factory": ["import collections\nd=collections.defaultdict(lambda:1)\ndef f(x): return d", "d.default_factory=lambda:2"],
    "a namespace": ["import types\nn=types.SimpleNamespace(a=1)\ndef f(x): return n.a", "n.a=2"],
    "type alias generic": ["T=list[int]\ndef f(x): return T", "T=list[str]"],
    "typing": ["import typing\nT=typing.Optional[int]\ndef f(x): return T", "T=typing.Optional[str]"],
    "module swap": ["import math as m\ndef f(x): return m.sin(x)", "import cmath as m"],
    "an item of a numpy array": ["import numpy as np\na=np.zeros(3)\ndef f(x): return a", "a[0]=1"],
    "numpy ufunc": ["import numpy as np\nu=np.sin\ndef f(x): return u(x)", "u=np.cos"],
    "the state of a numpy generator": ["import numpy as np\nr=np.random.default_rng(1)\ndef f(x): return r.random()", "r.random()"],
    "the state of a generator": ["import random\nr=random.Random(1)\ndef f(x): return r.random()", "r.random()"],
    "descriptor state": [
        "class D:\n  def __init__(s,n): s.n=n\n  def __get__(s,i,o): return s.n\nclass K:\n  d=D(1)\ndef f(x): return K.d",
        "vars(K)['d'].n=2",
    ],
    "slot of an object": [
        "m=[1].__contains__\ndef f(x): return m(x)",
        "m=[7].__contains__",
        "m.__self__.append(1)",
        "m=(7,1).__contains__",
    ],
    "method of a compiled object": ["s={1}\nm=s.__contains__\ndef f(x): return m(x)", "s.add(2)"],
    "type of a field": [
        "import dataclasses\n@dataclasses.dataclass\nclass D:\n  a: int=1\ndef f(x): return dataclasses.fields(D)[0].type(x)",
        "@dataclasses.dataclass\nclass D:\n  a: float=1",
    ],
    "type of a class": ["class D:\n  a: int=1\ndef f(x): return D.__annotations__", "class D:\n  a: float=1"],
    "type of a parameter": [
        "import inspect\ndef h(a: int): return a\ndef f(x): return inspect.signature(h).parameters['a'].annotation(x)",
        "def h(a: float): return a",
    ],
    "attribute of a function in a list": ["def h(): return 1\nh.n=1\nL=[h]\ndef f(x): return L[0].n", "h.n=2", "del h.n"],
    "attribute of a function in a tuple": ["def h(): return 1\nT=(h,)\ndef f(x): return T[0].n", "h.n=2", "h.n=[2]", "h.n.append(3)"],
    "iterator": ["i=iter([1,2])\ndef f(x): return next(i)", "next(i)"],
    "map iterator": ["i=map(str,[1,2])\ndef f(x): return next(i)", "next(i)"],
}


@pytest.mark.parametrize("what", CHANGES)
def test_every_change_gives_another_key(what: str) -> None:
    if "numpy" in what:
        pytest.importorskip("numpy")
    space: dict[str, Any] = {"__name__": "changed"}
    keys = []
    for text in CHANGES[what]:
        exec(compile(text, "<changed>", "exec", dont_inherit=True), space)
        keys.append(identify("f", space["f"], (1,), {}).key)
        assert identify("f", space["f"], (1,), {}).key == keys[-1]
    assert len({*keys}) == len(keys)
