define dso_local void @"tests.native.test_expected_text.fields_ptr_Point__u8_"(ptr %a0, i8 %a1) nounwind {
entry:
  %v1 = getelementptr i8, ptr %a0, i64 0
  %v2 = load i32, ptr %v1, align 1
  %v3 = zext i32 %v2 to i64
  %v4 = getelementptr i8, ptr %a0, i64 8
  store i64 %v3, ptr %v4, align 1
  %v5 = getelementptr i8, ptr %a0, i64 16
  %v6 = zext i8 %a1 to i64
  %v7 = getelementptr [1 x i8], ptr %v5, i64 %v6
  store i8 1, ptr %v7, align 1
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
