declare i64 @llvm.ctpop.i64(i64)
define dso_local i64 @"tests.native.test_expected_text.inlined_u64_"(i64 %a0) nounwind {
entry:
  %s1 = alloca i64
  store i64 zeroinitializer, ptr %s1
  %s6 = alloca i64
  store i64 zeroinitializer, ptr %s6
  %s7 = alloca i64
  store i64 zeroinitializer, ptr %s7
  store i64 %a0, ptr %s1
  %v2 = load i64, ptr %s1
  %v3 = call { i64, i64 } @"tests.native.test_expected_text.twice_u64_"(i64 %v2)
  %v4 = extractvalue { i64, i64 } %v3, 0
  %v5 = extractvalue { i64, i64 } %v3, 1
  store i64 %v4, ptr %s6
  store i64 %v5, ptr %s7
  %v8 = load i64, ptr %s6
  %v9 = load i64, ptr %s7
  %v10 = add i64 %v8, %v9
  ret i64 %v10
}
define internal { i64, i64 } @"tests.native.test_expected_text.twice_u64_"(i64 %a0) alwaysinline nounwind {
entry:
  %s1 = alloca i64
  store i64 zeroinitializer, ptr %s1
  store i64 %a0, ptr %s1
  %v2 = load i64, ptr %s1
  %v3 = load i64, ptr %s1
  %v4 = call i64 @llvm.ctpop.i64(i64 %v3)
  %r5 = insertvalue { i64, i64 } poison, i64 %v2, 0
  %r6 = insertvalue { i64, i64 } %r5, i64 %v4, 1
  ret { i64, i64 } %r6
}
!0 = !{!"branch_weights", i32 4000, i32 1}
