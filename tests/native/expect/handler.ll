define dso_local tailcc void @"tests.native.test_expected_text.handler_ptr_Point__ptr_Point__"(ptr %a0, ptr %a1) nounwind {
entry:
  %s1 = alloca ptr
  store ptr zeroinitializer, ptr %s1
  %s2 = alloca ptr
  store ptr zeroinitializer, ptr %s2
  store ptr %a0, ptr %s1
  store ptr %a1, ptr %s2
  %v3 = load ptr, ptr %s1
  %v4 = getelementptr i8, ptr %v3, i64 0
  %v5 = load i32, ptr %v4, align 1
  %v6 = add i32 %v5, 1
  store i32 %v6, ptr %v4, align 1
  %v7 = load ptr, ptr %s2
  %v8 = getelementptr i8, ptr %v7, i64 8
  %v9 = load i64, ptr %v8, align 1
  %v10 = load ptr, ptr %s1
  %v11 = load ptr, ptr %s2
  %v12 = inttoptr i64 %v9 to ptr
  musttail call tailcc void %v12(ptr %v10, ptr %v11)
  ret void
}
!0 = !{!"branch_weights", i32 4000, i32 1}
