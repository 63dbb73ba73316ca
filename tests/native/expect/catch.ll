declare dso_local { i64, i1 } @"tests.native.test_expected_text.risky_u64_"(i64) nounwind
define dso_local i64 @"tests.native.test_expected_text.catch_u64_"(i64 %a0) nounwind {
entry:
  %s1 = alloca i64
  store i64 zeroinitializer, ptr %s1
  store i64 %a0, ptr %s1
  %v4 = load i64, ptr %s1
  %v5 = call { i64, i1 } @"tests.native.test_expected_text.risky_u64_"(i64 %v4)
  %v6 = extractvalue { i64, i1 } %v5, 1
  %v8 = xor i1 %v6, 1
  br i1 %v8, label %ok7, label %catch3, !prof !0
ok7:
  %v9 = extractvalue { i64, i1 } %v5, 0
  ret i64 %v9
catch3:
  ret i64 1
}
!0 = !{!"branch_weights", i32 4000, i32 1}
