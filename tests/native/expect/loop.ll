define dso_local i64 @"tests.native.test_expected_text.loop_u32_"(i32 %a0) nounwind {
entry:
  %s1 = alloca i64
  store i64 zeroinitializer, ptr %s1
  %s6 = alloca i32
  store i32 zeroinitializer, ptr %s6
  %s9 = alloca i32
  store i32 zeroinitializer, ptr %s9
  store i64 0, ptr %s1
  store i32 0, ptr %s6
  br label %range2
range2:
  %v7 = load i32, ptr %s6
  %v8 = icmp ult i32 %v7, %a0
  br i1 %v8, label %do3, label %done5
do3:
  store i32 %v7, ptr %s9
  %v10 = load i32, ptr %s9
  %v11 = icmp eq i32 %v10, 3
  br i1 %v11, label %then12, label %endif14
then12:
  br label %step4
endif14:
  %v15 = load i64, ptr %s1
  %v16 = load i32, ptr %s9
  %v17 = zext i32 %v16 to i64
  %v18 = add i64 %v15, %v17
  store i64 %v18, ptr %s1
  br label %step4
step4:
  %v19 = add i32 %v7, 1
  store i32 %v19, ptr %s6
  br label %range2
done5:
  %v20 = load i64, ptr %s1
  ret i64 %v20
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
