"""Intel VT-d (Virtualization Technology for Directed I/O, revision 3.3): what an IOMMU unit is made of.

Section numbers in this folder are of that specification. Only legacy mode is here: root and context tables, and
second-level page tables of three and four levels.
"""
