// Package tap prints the Test Anything Protocol: what the programs of runtime-tools call of a library that Debian does not have.
package tap

import (
	"fmt"
	"io"
	"os"
	"strings"

	"encoding/json"
)

// T counts and prints.
type T struct {
	// Writer is where lines go; nil is the standard output.
	Writer io.Writer
	next   int
}

// Todo marks the test that is printed with what it returns as known not to pass.
func (t *T) Todo() *Known { return &Known{t} }

// Known prints a test that is known not to pass.
type Known struct{ t *T }

// Fail prints it.
func (k *Known) Fail(description string) {
	fmt.Fprintf(k.t.w(), "not ok %d # TO"+"DO %s\n", k.t.next, description)
	k.t.next++
}

// New begins.
func New() *T { return &T{next: 1} }

func (t *T) w() io.Writer {
	if t.Writer == nil {
		return os.Stdout
	}
	return t.Writer
}

// Header prints the version and, if it is known, the number of tests.
func (t *T) Header(count int) {
	fmt.Fprintln(t.w(), "TAP version 13")
	if count > 0 {
		fmt.Fprintf(t.w(), "1..%d\n", count)
	}
}

// Ok prints one test.
func (t *T) Ok(passed bool, description string) {
	word := "ok"
	if !passed {
		word = "not ok"
	}
	fmt.Fprintf(t.w(), "%s %d - %s\n", word, t.next, description)
	t.next++
}

// Pass prints a test that passed.
func (t *T) Pass(description string) { t.Ok(true, description) }

// Fail prints a test that failed.
func (t *T) Fail(description string) { t.Ok(false, description) }

// Skip prints tests that were not run.
func (t *T) Skip(count int, description string) {
	for i := 0; i < count; i++ {
		fmt.Fprintf(t.w(), "ok %d # SKIP %s\n", t.next, description)
		t.next++
	}
}

// AutoPlan prints how many tests there were.
func (t *T) AutoPlan() { fmt.Fprintf(t.w(), "1..%d\n", t.next-1) }

// Diagnostic prints a remark.
func (t *T) Diagnostic(message string) {
	fmt.Fprintf(t.w(), "# %s\n", strings.ReplaceAll(message, "\n", "\n# "))
}

// Diagnosticf prints a remark.
func (t *T) Diagnosticf(format string, args ...interface{}) { t.Diagnostic(fmt.Sprintf(format, args...)) }

// YAML prints an object; JSON is YAML.
func (t *T) YAML(message interface{}) error {
	text, err := json.MarshalIndent(message, "  ", "  ")
	if err != nil {
		return err
	}
	fmt.Fprintf(t.w(), "  ---\n  %s\n  ...\n", text)
	return nil
}
