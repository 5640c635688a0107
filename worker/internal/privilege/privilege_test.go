package privilege

import (
	"bytes"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// status runs a shell that prints its own status, as the kernel knows it.
func status(t *testing.T, cred *syscall.Credential, start func(*exec.Cmd) error) string {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", "cat /proc/self/status; id -u; id -g")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, out.String())
	}
	return out.String()
}

func TestChildrenGainNoPrivileges(t *testing.T) {
	for range 3 { // on threads of their own
		if s := status(t, nil, Start); !strings.Contains(s, "NoNewPrivs:\t1") {
			t.Errorf("a child may gain privileges:\n%s", s)
		}
	}
	// Others of this process are as before: its threads do not have the attribute.
	if s := status(t, nil, (*exec.Cmd).Start); !strings.Contains(s, "NoNewPrivs:\t0") {
		t.Skipf("this process itself has the attribute:\n%s", s)
	}
}

func TestStartSaysWhatIsWrong(t *testing.T) {
	if err := Start(exec.Command(filepath.Join(t.TempDir(), "missing"))); !os.IsNotExist(err) {
		t.Errorf("error %v, expected that there is no such file", err)
	}
}

func TestLookup(t *testing.T) {
	if c, err := Lookup(""); c != nil || err != nil {
		t.Errorf("%+v, %v for nobody in particular", c, err)
	}
	for _, bad := range []string{"no-such-user", "12:", ":12", "-1:2", "1:2:3", "99999999999:1"} {
		if _, err := Lookup(bad); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("%q: error %v, expected one that names it", bad, err)
		}
	}
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() != 0 {
		if c, err := Lookup(me.Username); c != nil || err != nil {
			t.Errorf("%+v, %v for this user", c, err)
		}
		if _, err := Lookup("0:0"); err == nil || !strings.Contains(err.Error(), "run it as root") {
			t.Errorf("error %v, expected that this takes root", err)
		}
		return
	}
	c, err := Lookup("4711:4712")
	if err != nil || c.Uid != 4711 || c.Gid != 4712 {
		t.Errorf("%+v, %v", c, err)
	}
	if c, err = Lookup(me.Username); err != nil || c.Uid != 0 || !slices.Contains(c.Groups, 0) {
		t.Errorf("%+v, %v: expected root and its groups", c, err)
	}
}

func TestSecretIsReadByAnotherUserAndChangedByNone(t *testing.T) {
	file := filepath.Join(t.TempDir(), "worker.nk")
	if err := os.WriteFile(file, []byte("seed"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Secret(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command("/bin/sh", "-c", "cat "+FileOf(0)+" "+FileOf(0)+"; echo x > "+FileOf(0))
	cmd.ExtraFiles = []*os.File{f}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 4711, Gid: 4711}}
	}
	out, err := cmd.Output()
	if err == nil || string(out) != "seedseed" {
		t.Errorf("%q, %v: expected it twice, and no leave to write", out, err)
	}
	if _, err := Secret(file + ".missing"); !os.IsNotExist(err) {
		t.Errorf("error %v, expected that there is no such file", err)
	}
}
