define dso_local void @"tests.native.test_expected_text.fields_ptr_Point__u8_"(ptr %a0, i8 %a1) nounwind {
entry:
  %s1 = alloca ptr
  store ptr zeroinitializer, ptr %s1
  %s2 = alloca i8
  store i8 zeroinitializer, ptr %s2
  store ptr %a0, ptr %s1
  store i8 %a1, ptr %s2
  %v3 = load ptr, ptr %s1
  %v4 = getelementptr i8, ptr %v3, i64 0
  %v5 = load i32, ptr %v4, align 1
  %v6 = zext i32 %v5 to i64
  %v7 = load ptr, ptr %s1
  %v8 = getelementptr i8, ptr %v7, i64 8
  store i64 %v6, ptr %v8, align 1
  %v9 = load ptr, ptr %s1
  %v10 = getelementptr i8, ptr %v9, i64 16
  %v11 = load i8, ptr %s2
  %v12 = zext i8 %v11 to i64
  %v13 = getelementptr [1 x i8], ptr %v10, i64 %v12
  store i8 1, ptr %v13, align 1
  ret void
}
!0 = !{!"branch_weights", i32 4000, i32 1}
