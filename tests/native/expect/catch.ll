declare dso_local { i64, i1 } @"tests.native.test_expected_text.risky_u64_"(i64) nounwind
define dso_local i64 @"tests.native.test_expected_text.catch_u64_"(i64 %a0) nounwind {
entry:
  %v3 = call { i64, i1 } @"tests.native.test_expected_text.risky_u64_"(i64 %a0)
  %v4 = extractvalue { i64, i1 } %v3, 1
  %v6 = xor i1 %v4, 1
  br i1 %v6, label %ok5, label %catch2, !prof !0
ok5:
  %v7 = extractvalue { i64, i1 } %v3, 0
  ret i64 %v7
catch2:
  ret i64 1
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
