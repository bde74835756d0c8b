// fluent-logger for Go, what Docker's driver is made of: client PORT COUNT. Ends well if every event was acknowledged.
package main

import (
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/fluent/fluent-logger-golang/fluent"
)

func main() {
	port, _ := strconv.Atoi(os.Args[1])
	count, _ := strconv.Atoi(os.Args[2])
	config := fluent.Config{
		FluentHost: "127.0.0.1", FluentPort: port, RequestAck: true, SubSecondPrecision: true, MaxRetry: 1,
	}
	// This version of the library waits for an answer for ever.
	time.AfterFunc(30*time.Second, func() {
		fmt.Fprintln(os.Stderr, "an acknowledgement is missing")
		os.Exit(1)
	})
	logger, err := fluent.New(config)
	for number := 0; err == nil && number < count; number++ {
		err = logger.Post("go.ack", map[string]string{"message": fmt.Sprintf("ack %d", number)})
	}
	if err == nil {
		err = logger.Close()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
