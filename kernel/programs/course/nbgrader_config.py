"""Settings of nbgrader for Rust notebooks."""
c = get_config()  # noqa: F821
c.CourseDirectory.course_id = "course"
c.ClearSolutions.code_stub = {"rust": 'todo!("your answer")'}
# Seconds for a cell. The first one waits for the compiler.
c.Execute.timeout = 120
# nbgrader takes any text on stderr for a failure. On this kernel a cell that fails has an error among its outputs.
c.IgnorePattern.enabled = True
c.IgnorePattern.pattern = "^"
