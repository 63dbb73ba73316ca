define dso_local i64 @"tests.native.test_expected_text.quotient_u64_u64_"(i64 %a0, i64 %a1) nounwind {
entry:
  %v1 = icmp eq i64 %a1, 0
  %v2 = select i1 %v1, i64 1, i64 %a1
  %v3 = udiv i64 %a0, %v2
  %v4 = select i1 %v1, i64 0, i64 %v3
  ret i64 %v4
}
!0 = !{!"branch_weights", i32 4000, i32 1}
!10 = !{}
!11 = !{!"pellucid"}
!12 = !{!"others", !11, i64 0}
!13 = !{!"registers", !11, i64 0}
!14 = !{!"own", !12, i64 0}
!15 = !{!"foreign", !12, i64 0}
!16 = !{!12, !12, i64 0}
!17 = !{!13, !13, i64 0}
!18 = !{!14, !14, i64 0}
!19 = !{!15, !15, i64 0}
