"""Classes of memory that never overlap, told to LLVM as metadata of each access (type-based alias analysis).

    REGISTERS   fields that a struct declares as registers: reached through pointers to that struct alone
    STEADY      fields that do not change while code of one region runs
    OWN         the other fields of such a struct, and of one declared `own`
    FOREIGN     what `foreign` points to: memory that is no struct's
    ""          unknown: may be any of them

A function that spares registers touches memory of every class but REGISTERS, and a call of it says so. Then a loop
can hold registers in the host's, though there are such calls on its rare ways. LLVM's tree has therefore two
branches: REGISTERS, and OTHERS with OWN and FOREIGN below it.

Not alias.scope: LLVM renames scopes where it inlines a function, and then those of two instructions never meet.
"""

REGISTERS, STEADY, OWN, FOREIGN, OTHERS = "registers", "steady", "own", "foreign", "others"

_TAG = {"": "", OTHERS: ", !tbaa !16", REGISTERS: ", !tbaa !17", STEADY: ", !tbaa !18", OWN: ", !tbaa !18",
        FOREIGN: ", !tbaa !19"}

METADATA = """!10 = !{}
!11 = !{!"pellucid"}
!12 = !{!"others", !11, i64 0}
!13 = !{!"registers", !11, i64 0}
!14 = !{!"own", !12, i64 0}
!15 = !{!"foreign", !12, i64 0}
!16 = !{!12, !12, i64 0}
!17 = !{!13, !13, i64 0}
!18 = !{!14, !14, i64 0}
!19 = !{!15, !15, i64 0}"""


def tag(memory: str, *, steady: bool = False) -> str:
    """What an access of this class ends in; `steady`: a load in code of a region."""
    return _TAG[memory] + (", !invariant.load !10" if steady and memory == STEADY else "")
