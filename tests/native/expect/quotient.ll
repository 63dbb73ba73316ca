define dso_local i64 @"tests.native.test_expected_text.quotient_u64_u64_"(i64 %a0, i64 %a1) nounwind {
entry:
  %s1 = alloca i64
  store i64 zeroinitializer, ptr %s1
  %s2 = alloca i64
  store i64 zeroinitializer, ptr %s2
  store i64 %a0, ptr %s1
  store i64 %a1, ptr %s2
  %v3 = load i64, ptr %s1
  %v4 = load i64, ptr %s2
  %v5 = icmp eq i64 %v4, 0
  %v6 = select i1 %v5, i64 1, i64 %v4
  %v7 = udiv i64 %v3, %v6
  %v8 = select i1 %v5, i64 0, i64 %v7
  ret i64 %v8
}
!0 = !{!"branch_weights", i32 4000, i32 1}
