define dso_local tailcc void @"tests.native.test_expected_text.handler_ptr_Point__ptr_Point__"(ptr %a0, ptr %a1) nounwind {
entry:
  %v1 = getelementptr i8, ptr %a0, i64 0
  %v2 = load i32, ptr %v1, align 1
  %v3 = add i32 %v2, 1
  store i32 %v3, ptr %v1, align 1
  %v4 = getelementptr i8, ptr %a1, i64 8
  %v5 = load i64, ptr %v4, align 1
  %v6 = inttoptr i64 %v5 to ptr
  musttail call tailcc void %v6(ptr %a0, ptr %a1)
  ret void
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
