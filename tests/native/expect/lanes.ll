declare i64 @llvm.fptoui.sat.i64.f64(double)
define dso_local i64 @"tests.native.test_expected_text.lanes_vec_i32__4__f64_"(<4 x i32> %a0, double %a1) nounwind {
entry:
  %v1 = add <4 x i32> %a0, <i32 1, i32 1, i32 1, i32 1>
  %v2 = extractelement <4 x i32> %v1, i32 2
  %v3 = sext i32 %v2 to i64
  %v4 = call i64 @llvm.fptoui.sat.i64.f64(double %a1)
  %v5 = add i64 %v3, %v4
  ret i64 %v5
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
