declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
define dso_local i64 @"tests.native.test_expected_text.scratch_ptr_u64__"(ptr %a0) nounwind {
entry:
  %s1 = alloca ptr
  store ptr zeroinitializer, ptr %s1
  %l2 = alloca [16 x i8], align 16
  %s3 = alloca ptr
  store ptr zeroinitializer, ptr %s3
  store ptr %a0, ptr %s1
  call void @llvm.memset.p0.i64(ptr %l2, i8 0, i64 16, i1 0)
  store ptr %l2, ptr %s3
  %v4 = load ptr, ptr %s1
  %v5 = atomicrmw add ptr %v4, i64 1 seq_cst, align 8
  %v6 = load ptr, ptr %s3
  %v7 = getelementptr [8 x i8], ptr %v6, i64 1
  store i64 %v5, ptr %v7, align 1
  %v8 = load ptr, ptr %s3
  %v9 = getelementptr [8 x i8], ptr %v8, i64 0
  %v10 = load i64, ptr %v9, align 1
  %v11 = load ptr, ptr %s3
  %v12 = getelementptr [8 x i8], ptr %v11, i64 1
  %v13 = load i64, ptr %v12, align 1
  %v14 = add i64 %v10, %v13
  ret i64 %v14
}
!0 = !{!"branch_weights", i32 4000, i32 1}
