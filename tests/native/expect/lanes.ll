declare i64 @llvm.fptoui.sat.i64.f64(double)
define dso_local i64 @"tests.native.test_expected_text.lanes_vec_i32__4__f64_"(<4 x i32> %a0, double %a1) nounwind {
entry:
  %s1 = alloca <4 x i32>
  store <4 x i32> zeroinitializer, ptr %s1
  %s2 = alloca double
  store double zeroinitializer, ptr %s2
  store <4 x i32> %a0, ptr %s1
  store double %a1, ptr %s2
  %v3 = load <4 x i32>, ptr %s1
  %v4 = add <4 x i32> %v3, <i32 1, i32 1, i32 1, i32 1>
  %v5 = extractelement <4 x i32> %v4, i32 2
  %v6 = sext i32 %v5 to i64
  %v7 = load double, ptr %s2
  %v8 = call i64 @llvm.fptoui.sat.i64.f64(double %v7)
  %v9 = add i64 %v6, %v8
  ret i64 %v9
}
!0 = !{!"branch_weights", i32 4000, i32 1}
