"""Instructions as text, for `x/i` and -d in_asm, in QEMU's layout."""

from iced_x86 import Code, Decoder, Formatter, FormatterSyntax, Instruction

from pellucid.monitor.dump import MAX_INSTRUCTION, Reader

PAGE = 4096


def disassembly(count: int, address: int, read: Reader, bits: int) -> str:
    """`count` instructions in AT&T syntax: address, bytes (8 a line), mnemonic, operands."""
    formatter = _formatter()
    lines = []
    for _ in range(count):
        content = _readable_bytes(address, read)
        if not content:
            lines.append(f"0x{address:08x}: unable to read memory")
            break
        instruction = Decoder(bits, content, ip=address).decode()
        if instruction.code == Code.INVALID:
            length, text = 1, f"{'.byte':<8} 0x{content[0]:02x}"
        else:
            length, text = instruction.len, _instruction_text(formatter, instruction)
        lines += _instruction_lines(address, content[:length], text)
        address = (address + length) & (1 << 64) - 1
    return "".join(line + "\n" for line in lines)


def block_text(address: int, code: bytes, bits: int) -> str:
    """All instructions of `code`, which stands at `address`, each line ended."""
    text, at = [], 0
    while at < len(code):
        here = address + at
        text.append(disassembly(1, here, lambda a, size: code[a - address:a - address + size], bits))
        at += max(1, Decoder(bits, code[at:], ip=here).decode().len)
    return "".join(text)


def _readable_bytes(address: int, read: Reader) -> bytes:
    """Up to 15 bytes from `address`: as far as they can be read, since an instruction may end where memory does."""
    first = min(MAX_INSTRUCTION, PAGE - address % PAGE)
    content = read(address, first)
    if content is None:
        return b""
    if first < MAX_INSTRUCTION:
        content += read((address + first) & (1 << 64) - 1, MAX_INSTRUCTION - first) or b""
    return content


def _formatter() -> Formatter:
    formatter = Formatter(FormatterSyntax.GAS)
    formatter.uppercase_hex = False
    formatter.space_after_operand_separator = True
    formatter.gas_show_mnemonic_size_suffix = True
    formatter.gas_space_after_memory_operand_comma = True
    formatter.rip_relative_addresses = True
    formatter.branch_leading_zeros = False
    return formatter


def _instruction_text(formatter: Formatter, instruction: Instruction) -> str:
    return f"{formatter.format_mnemonic(instruction):<8} {formatter.format_all_operands(instruction)}"


def _instruction_lines(address: int, content: bytes, text: str) -> list[str]:
    head, *tail = (content[start : start + 8] for start in range(0, len(content), 8))
    lines = [f"0x{address:08x}: {_hex(head):<24}  {text}"]
    lines += [f"0x{address + 8 * number:08x}: {_hex(rest)}" for number, rest in enumerate(tail, 1)]
    return lines


def _hex(content: bytes) -> str:
    return "".join(f" {byte:02x}" for byte in content)
