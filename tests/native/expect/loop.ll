define dso_local i64 @"tests.native.test_expected_text.loop_u32_"(i32 %a0) nounwind {
entry:
  %s1 = alloca i32
  store i32 zeroinitializer, ptr %s1
  %s2 = alloca i64
  store i64 zeroinitializer, ptr %s2
  %s8 = alloca i32
  store i32 zeroinitializer, ptr %s8
  %s11 = alloca i32
  store i32 zeroinitializer, ptr %s11
  store i32 %a0, ptr %s1
  store i64 0, ptr %s2
  %v3 = load i32, ptr %s1
  store i32 0, ptr %s8
  br label %range4
range4:
  %v9 = load i32, ptr %s8
  %v10 = icmp ult i32 %v9, %v3
  br i1 %v10, label %do5, label %done7
do5:
  store i32 %v9, ptr %s11
  %v12 = load i32, ptr %s11
  %v13 = icmp eq i32 %v12, 3
  br i1 %v13, label %then14, label %endif16
then14:
  br label %step6
endif16:
  %v17 = load i64, ptr %s2
  %v18 = load i32, ptr %s11
  %v19 = zext i32 %v18 to i64
  %v20 = add i64 %v17, %v19
  store i64 %v20, ptr %s2
  br label %step6
step6:
  %v21 = add i32 %v9, 1
  store i32 %v21, ptr %s8
  br label %range4
done7:
  %v22 = load i64, ptr %s2
  ret i64 %v22
}
!0 = !{!"branch_weights", i32 4000, i32 1}
