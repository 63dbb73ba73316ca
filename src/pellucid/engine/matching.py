"""From bytes to the template of their shape: a walk down the trie, one edge a byte."""

from pellucid.cpu.code_cache import TRIE_EDGES, TRIE_TERMINAL, Template, TrieEdge
from pellucid.cpu.state import FEATURES_ISA
from pellucid.native import native, ptr, u8, u32, u64

NO_TEMPLATE = 0xFFFF_FFFF
SHORT = 0xFFFF_FFFE


@native
def trie_step(c, node, byte):
    """The child of `node` by `byte`: a node, TRIE_TERMINAL | template, or 0 where there is none yet."""
    key = node * 256 + u32(byte) + 1
    h = (key ^ (key >> 13)) * 0x9E3779B1
    i = (h >> 7) & (TRIE_EDGES - 1)
    edges = ptr[TrieEdge](c.trie)
    found: u32 = 0
    while True:
        k = edges[u64(i)].key
        if k == key:
            found = edges[u64(i)].value
            break
        if k == 0:
            break
        i = (i + 1) & (TRIE_EDGES - 1)
    return found


@native
def match(c, code, available, root):
    """The number of the template for the bytes at `code`, NO_TEMPLATE, or SHORT when more bytes are needed."""
    node = root
    i: u64 = 0
    result: u32 = NO_TEMPLATE
    while True:
        if i == available:
            result = SHORT
            break
        node = trie_step(c, node, ptr[u8](code)[i])
        if node == 0:
            break
        i += 1
        if (node & TRIE_TERMINAL) != 0:
            result = node & ~u32(TRIE_TERMINAL)
            if u64(ptr[Template](c.templates)[result].length) > available:
                result = SHORT
            break
    return result


@native
def lacks(s, t):
    """Whether CPUID hides something that a template needs."""
    first = t.needs[0] & ~s.features[FEATURES_ISA]
    return (first | (t.needs[1] & ~s.features[FEATURES_ISA + 1])) != 0


@native
def template_for(s, c, number):
    """Template `number`, or the one that counts where CPUID does not show all that it needs."""
    t = ptr[Template](c.templates + u64(number) * Template.size)
    if lacks(s, t) and t.without != 0:
        t = ptr[Template](c.templates + u64(t.without) * Template.size)
    return t
