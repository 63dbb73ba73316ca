define dso_local i32 @"tests.native.test_expected_text.shift_i32_u8_"(i32 %a0, i8 %a1) nounwind {
entry:
  %s1 = alloca i32
  store i32 zeroinitializer, ptr %s1
  %s2 = alloca i8
  store i8 zeroinitializer, ptr %s2
  store i32 %a0, ptr %s1
  store i8 %a1, ptr %s2
  %v3 = load i32, ptr %s1
  %v4 = load i8, ptr %s2
  %v5 = zext i8 %v4 to i32
  %v6 = icmp ult i32 %v5, 32
  %v7 = select i1 %v6, i32 %v5, i32 31
  %v8 = ashr i32 %v3, %v7
  ret i32 %v8
}
!0 = !{!"branch_weights", i32 4000, i32 1}
