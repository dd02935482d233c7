//! Tests of the lab that need no lab.

use super::*;

fn script(argv: &[&str]) -> String {
    let command = LabCommand {
        cwd: "/".into(),
        ..LabCommand::new(argv.iter().copied())
    };
    String::from_utf8(command.as_script().unwrap()).unwrap()
}

#[test]
fn arguments_survive_the_shell() {
    let odd = [
        "a b",
        "it's",
        "$HOME `id` \"q\"",
        "",
        "-n",
        "line\nbreak",
        "\\",
        "*",
        "ä",
    ];
    let mut argv = vec!["printf", "<%s>"];
    argv.extend(odd);
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), script(&argv)).unwrap();
    let output = crate::tool::Tool::new("sh")
        .arg(file.path())
        .text()
        .unwrap();
    let expected: String = odd.iter().map(|word| format!("<{word}>")).collect();
    assert_eq!(output, expected);
}

#[test]
fn environment_and_folder_survive_the_shell() {
    let mut command = LabCommand::new(["sh", "-c", "echo \"$WORD\"; pwd"]);
    command.cwd = "/usr".into();
    command.env = vec![("WORD".into(), "two 'words' $X".into())];
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), command.as_script().unwrap()).unwrap();
    let output = crate::tool::Tool::new("sh")
        .arg(file.path())
        .text()
        .unwrap();
    assert_eq!(output, "two 'words' $X\n/usr\n");
    command.env = vec![("A-B".into(), "x".into())];
    assert!(command.as_script().unwrap_err().to_string().contains("A-B"));
}

#[test]
fn what_no_command_can_be_is_refused() {
    assert!(LabCommand::new(Vec::<String>::new()).as_script().is_err());
    assert!(
        LabCommand::new(["a\0b"])
            .as_script()
            .unwrap_err()
            .to_string()
            .contains("zero byte")
    );
}

#[test]
fn commas_in_paths_are_doubled() {
    let text = option("file,path=", OsStr::new("/a,b"), ",x=on").unwrap();
    assert_eq!(text, "file,path=/a,,b,x=on");
}

#[test]
fn the_scripts_are_valid() {
    for script in [INIT, AGENT] {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), script).unwrap();
        crate::tool::Tool::new("sh")
            .arg("-n")
            .arg(file.path())
            .output()
            .unwrap();
    }
}
