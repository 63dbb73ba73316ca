"""CRC-32C by the host's own instruction (SSE4.2). A port to another host replaces this file."""

from pellucid.native import asm, native, u64

_CRC32 = {
    1: "crc32b ${2:b}, ${0:k}", 2: "crc32w ${2:w}, ${0:k}", 4: "crc32l ${2:k}, ${0:k}", 8: "crc32q ${2:q}, ${0:q}"}


@native
def crc32c(crc, data, w):
    """The CRC-32C (polynomial 11EDC6F41H, bit-reflected) of `w` bytes of data after the 32-bit `crc`, as a u64."""
    return asm(u64, _CRC32[w], "=r,0,r", u64(crc), u64(data))
