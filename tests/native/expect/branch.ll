declare i1 @llvm.expect.i1(i1, i1)
define dso_local i64 @"tests.native.test_expected_text.branch_u64_"(i64 %a0) nounwind {
entry:
  %s1 = alloca i64
  store i64 zeroinitializer, ptr %s1
  store i64 %a0, ptr %s1
  %v2 = load i64, ptr %s1
  %v3 = icmp ugt i64 %v2, 5
  %v4 = call i1 @llvm.expect.i1(i1 %v3, i1 1)
  br i1 %v4, label %then5, label %else6
then5:
  %v8 = load i64, ptr %s1
  %v9 = add i64 %v8, 1
  store i64 %v9, ptr %s1
  br label %endif7
else6:
  store i64 7, ptr %s1
  br label %endif7
endif7:
  %v10 = load i64, ptr %s1
  ret i64 %v10
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
