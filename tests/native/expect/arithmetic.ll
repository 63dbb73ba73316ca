define dso_local i32 @"tests.native.test_expected_text.arithmetic_u32_u32_"(i32 %a0, i32 %a1) nounwind {
entry:
  %s1 = alloca i32
  store i32 zeroinitializer, ptr %s1
  %s2 = alloca i32
  store i32 zeroinitializer, ptr %s2
  store i32 %a0, ptr %s1
  store i32 %a1, ptr %s2
  %v3 = load i32, ptr %s1
  %v4 = load i32, ptr %s2
  %v5 = mul i32 %v4, 3
  %v6 = add i32 %v3, %v5
  %v7 = load i32, ptr %s1
  %v8 = xor i32 %v7, -1
  %v9 = xor i32 %v6, %v8
  ret i32 %v9
}
!0 = !{!"branch_weights", i32 4000, i32 1}
