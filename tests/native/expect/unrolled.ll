define dso_local i16 @"tests.native.test_expected_text.unrolled.2_u64_"(i64 %a0) nounwind {
entry:
  %s1 = alloca i64
  store i64 zeroinitializer, ptr %s1
  store i64 %a0, ptr %s1
  br label %next3
next3:
  %v5 = load i64, ptr %s1
  %v6 = add i64 %v5, 2
  store i64 %v6, ptr %s1
  br label %next4
next4:
  br label %unrolled2
unrolled2:
  %v7 = load i64, ptr %s1
  %v8 = trunc i64 %v7 to i16
  ret i16 %v8
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
