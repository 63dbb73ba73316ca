declare i64 @llvm.ctpop.i64(i64)
define dso_local i64 @"tests.native.test_expected_text.inlined_u64_"(i64 %a0) nounwind {
entry:
  %v1 = call { i64, i64 } @"tests.native.test_expected_text.twice_u64_"(i64 %a0)
  %v2 = extractvalue { i64, i64 } %v1, 0
  %v3 = extractvalue { i64, i64 } %v1, 1
  %v4 = add i64 %v2, %v3
  ret i64 %v4
}
define internal { i64, i64 } @"tests.native.test_expected_text.twice_u64_"(i64 %a0) alwaysinline nounwind {
entry:
  %v1 = call i64 @llvm.ctpop.i64(i64 %a0)
  %r2 = insertvalue { i64, i64 } poison, i64 %a0, 0
  %r3 = insertvalue { i64, i64 } %r2, i64 %v1, 1
  ret { i64, i64 } %r3
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
