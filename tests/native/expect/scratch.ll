declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
define dso_local i64 @"tests.native.test_expected_text.scratch_ptr_u64__"(ptr %a0) nounwind {
entry:
  %l1 = alloca [16 x i8], align 16
  call void @llvm.memset.p0.i64(ptr %l1, i8 0, i64 16, i1 0)
  %v2 = atomicrmw add ptr %a0, i64 1 seq_cst, align 8
  %v3 = getelementptr [8 x i8], ptr %l1, i64 1
  store i64 %v2, ptr %v3, align 1
  %v4 = getelementptr [8 x i8], ptr %l1, i64 0
  %v5 = load i64, ptr %v4, align 1
  %v6 = getelementptr [8 x i8], ptr %l1, i64 1
  %v7 = load i64, ptr %v6, align 1
  %v8 = add i64 %v5, %v7
  ret i64 %v8
}
!0 = !{!"branch_weights", i32 4000, i32 1}
!10 = !{}
!11 = !{!"pellucid"}
!12 = !{!"others", !11, i64 0}
!13 = !{!"registers", !11, i64 0}
!14 = !{!"own", !12, i64 0}
!15 = !{!"foreign", !12, i64 0}
!16 = !{!12, !12, i64 0}
!17 = !{!13, !13, i64 0}
!18 = !{!14, !14, i64 0}
!19 = !{!15, !15, i64 0}
