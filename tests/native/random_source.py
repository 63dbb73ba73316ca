"""Random functions of the subset, as source text: well typed by construction, and certain to end."""

import random

KINDS = ("u8", "u16", "u32", "u64", "u128", "i8", "i16", "i32", "i64")
BITS = {k: int(k[1:]) for k in KINDS}


class Writer:
    """One function `name(a: u64, b: i32, c: u8)` with a u64 result; `choose` decides everything."""

    def __init__(self, choose: random.Random, name: str) -> None:
        self.choose, self.name = choose, name
        self.lines: list[str] = []
        self.kinds = {"a": "u64", "b": "i32", "c": "u8"}
        self.fixed: set[str] = set()     # loop variables: read only
        self.fuel = 24                   # statements left
        self.count = 0

    def source(self) -> str:
        self.block(1, 0, in_loop=False)
        total = " ^ ".join(f"u64({n})" for n in self.kinds)
        return "\n".join([f"@native\ndef {self.name}(a: u64, b: i32, c: u8) -> u64:", *self.lines,
                          f"    return {total}", ""])

    def say(self, depth: int, text: str) -> None:
        self.lines.append("    " * depth + text)

    # --- statements ------------------------------------------------------------------------------------

    def block(self, depth: int, nesting: int, *, in_loop: bool) -> None:
        """A few statements; names bound inside are not used after, as a way around may leave them unbound."""
        outer = dict(self.kinds)
        for _ in range(self.choose.randint(1, 5)):
            self.fuel -= 1
            if self.fuel < 0:
                break
            self.statement(depth, nesting, in_loop)
        else:
            if in_loop and self.choose.random() < 0.2:
                self.say(depth, self.choose.choice(("break", "continue")))
        self.say(depth, "pass")
        if depth > 1:
            self.kinds = outer

    def statement(self, depth: int, nesting: int, in_loop: bool) -> None:
        simple = [self.new, self.new, self.assign, self.assign, self.in_place, self.raises]
        deep = [self.branch, self.branch, self.counted, self.unrolled, self.bounded_while, self.catching]
        pick = self.choose.choice(simple + deep if nesting < 3 else simple)
        if pick in deep:
            pick(depth, nesting, in_loop)  # type: ignore[call-arg]
        else:
            pick(depth)  # type: ignore[call-arg]

    def new(self, depth: int) -> None:
        kind = self.choose.choice(KINDS)
        self.count += 1
        name = f"v{self.count}"
        value = self.literal(kind) if self.choose.random() < 0.4 else self.expression(kind, 2)
        self.say(depth, f"{name}: {kind} = {value}")
        self.kinds[name] = kind

    def variable(self) -> str:
        return self.choose.choice([n for n in self.kinds if n not in self.fixed])

    def assign(self, depth: int) -> None:
        name = self.variable()
        kind = self.kinds[name]
        roll = self.choose.random()
        if roll < 0.2:
            self.say(depth, f"{name} = {self.literal(kind)}")
        elif roll < 0.3:
            self.say(depth, f"{name} = {self.literal(kind)} if {self.condition(1)} else {self.literal(kind)}")
        elif roll < 0.4 and (other := self.variable()) != name:  # CPython 3.11.2 reverses `a, a = x, y`
            self.say(depth, f"{name}, {other} = {self.expression(kind, 1)}, {self.expression(self.kinds[other], 1)}")
        else:
            self.say(depth, f"{name} = {self.expression(kind, 3)}")

    def in_place(self, depth: int) -> None:
        name = self.variable()
        op = self.choose.choice(("+", "-", "*", "&", "|", "^", "<<", ">>"))
        other = self.expression(self.kinds[name], 1) if self.choose.random() < 0.6 else self.small()
        self.say(depth, f"{name} {op}= {other}")

    def raises(self, depth: int) -> None:
        if self.choose.random() < 0.3:
            self.say(depth, f"if {self.condition(1)}:")
            self.say(depth + 1, "raise Stop")
        else:
            self.say(depth, f"{self.typed_call(depth)}")

    def typed_call(self, depth: int) -> str:
        name = self.variable()
        return f"{name} = {self.kinds[name]}(risky({self.expression('u64', 1)}))"

    def branch(self, depth: int, nesting: int, in_loop: bool) -> None:
        self.say(depth, f"if {self.condition(2)}:")
        self.block(depth + 1, nesting + 1, in_loop=in_loop)
        if self.choose.random() < 0.5:
            self.say(depth, "else:")
            self.block(depth + 1, nesting + 1, in_loop=in_loop)

    def counted(self, depth: int, nesting: int, in_loop: bool) -> None:
        self.count += 1
        name, kind = f"at{self.count}", self.choose.choice(("u8", "u32", "u64", "i32"))
        bound = f"{self.expression(kind, 1)} & {self.choose.choice((3, 7))}"
        step = self.choose.choice(("", ", 2", ", 3"))
        start = self.choose.choice(("", "0, ", "1, ", "2, ")) or ("0, " if step else "")
        self.say(depth, f"for {name} in range({start}{bound}{step}):")
        self.loop_body(name, kind, depth, nesting)

    def unrolled(self, depth: int, nesting: int, in_loop: bool) -> None:
        self.count += 1
        name = f"k{self.count}"
        items = [self.choose.randint(0, 100) for _ in range(self.choose.randint(0, 3))]
        self.say(depth, f"for {name} in static({items}):")
        target = self.variable()
        self.say(depth + 1, f"{target} += {name}")
        self.block(depth + 1, nesting + 1, in_loop=True)

    def loop_body(self, name: str, kind: str, depth: int, nesting: int) -> None:
        self.kinds[name] = kind
        self.fixed.add(name)
        self.block(depth + 1, nesting + 1, in_loop=True)
        del self.kinds[name]

    def bounded_while(self, depth: int, nesting: int, in_loop: bool) -> None:
        self.count += 1
        name = f"w{self.count}"
        self.say(depth, f"{name}: u64 = 0")
        self.say(depth, f"while {name} < {self.choose.randint(1, 4)} and {self.condition(1)}:")
        self.say(depth + 1, f"{name} += 1")
        self.loop_body(name, "u64", depth, nesting)

    def catching(self, depth: int, nesting: int, in_loop: bool) -> None:
        self.say(depth, "try:")
        self.block(depth + 1, nesting + 1, in_loop=in_loop)
        self.say(depth, "except Stop:")
        self.block(depth + 1, nesting + 1, in_loop=in_loop)

    # --- expressions -----------------------------------------------------------------------------------

    def literal(self, kind: str) -> str:
        bits, signed = BITS[kind], kind[0] == "i"
        low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
        return str(self.choose.choice((0, 1, low, high, self.choose.randint(low, high), self.choose.randint(0, 100))))

    def small(self) -> str:
        return str(self.choose.randint(0, 100))

    def expression(self, kind: str, depth: int) -> str:
        """An expression of this type that has it, literals only beside something typed."""
        same = [n for n, k in self.kinds.items() if k == kind]
        roll = self.choose.random()
        if depth == 0 or roll < 0.15:
            if same and roll < 0.6:
                return self.choose.choice(same)
            return f"{kind}({self.choose.choice(list(self.kinds))})"
        if roll < 0.55:
            op = self.choose.choice(("+", "-", "*", "&", "|", "^", "<<", ">>"))
            count = self.choose.random() < 0.3
            right = self.small() if count else self.expression(
                self.choose.choice(KINDS) if op in ("<<", ">>") else kind, depth - 1)
            return f"({self.expression(kind, depth - 1)} {op} {right})"
        if roll < 0.65:
            a, b = self.expression(kind, depth - 1), self.expression(kind, depth - 1)
            if kind[0] == "i":
                return f"{self.choose.choice(('sdiv', 'srem'))}({a}, {b})"
            return f"({a} {self.choose.choice(('//', '%'))} {b})"
        if roll < 0.75:
            return f"{self.choose.choice(('~', '-'))}{self.expression(kind, depth - 1)}"
        if roll < 0.85:
            return f"{kind}({self.expression(self.choose.choice(KINDS), depth - 1)})"
        if roll < 0.92:
            name = self.choose.choice(("rotl", "rotr", "minimum", "maximum", "add_sat", "sub_sat"))
            return f"{name}({self.expression(kind, depth - 1)}, {self.expression(kind, depth - 1)})"
        pick = "select({1}, {0}, {2})" if self.choose.random() < 0.4 else "({0} if {1} else {2})"
        sides = self.expression(kind, depth - 1), self.condition(depth - 1), self.expression(kind, depth - 1)
        return pick.format(*sides)

    def condition(self, depth: int) -> str:
        roll = self.choose.random()
        if depth == 0 or roll < 0.6:
            kind = self.choose.choice(KINDS)
            right = self.literal(kind) if self.choose.random() < 0.4 else self.expression(kind, max(depth - 1, 0))
            op = self.choose.choice(("==", "!=", "<", "<=", ">", ">="))
            return f"{self.expression(kind, max(depth - 1, 0))} {op} {right}"
        if roll < 0.7:
            return f"not ({self.condition(depth - 1)})"
        if roll < 0.75:
            return self.choose.choice(("True", "False"))
        joint = self.choose.choice(("and", "or"))
        return f"({self.condition(depth - 1)} {joint} {self.condition(depth - 1)})"


PRELUDE = """\
from pellucid.native import *

class Stop(NativeException): pass

@native(inline=False)
def risky(x: u64) -> u64:
    if x & 3 == 3:
        raise Stop
    return x * 7

"""


def module_source(seed: int, functions: int) -> str:
    """A module of so many random functions f0, f1, ..."""
    choose = random.Random(seed)
    return PRELUDE + "\n\n".join(Writer(choose, f"f{i}").source() for i in range(functions))
