define dso_local i32 @"tests.native.test_expected_text.arithmetic_u32_u32_"(i32 %a0, i32 %a1) nounwind {
entry:
  %v1 = mul i32 %a1, 3
  %v2 = add i32 %a0, %v1
  %v3 = xor i32 %a0, -1
  %v4 = xor i32 %v2, %v3
  ret i32 %v4
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
