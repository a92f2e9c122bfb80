// The far ends of the benchmark: a mock provider, a tuned reverse proxy to compare with, and a load generator
// that checks every reply. Loopback only; each load is bounded in time.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"
)

const chunksPerStream = 64

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: loadtool mock|proxy|load ...")
		os.Exit(2)
	}
	switch os.Args[1] {
	case "mock":
		mock(os.Args[2:])
	case "proxy":
		proxy(os.Args[2:])
	case "load":
		load(os.Args[2:])
	}
}

// mock

func chunk(b *bytes.Buffer, text string) { fmt.Fprintf(b, "%x\r\n%s\r\n", len(text), text) }

func event(delta, finish, rest string) string {
	return `data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"gpt-4o-2024-08-06",` +
		`"choices":[{"index":0,"delta":` + delta + `,"finish_reason":` + finish + `}]` + rest + "}\n\n"
}

func mock(args []string) {
	flags := flag.NewFlagSet("mock", flag.ExitOnError)
	address := flags.String("listen", "127.0.0.1:9100", "")
	pace := flags.Duration("pace", 0, "between two chunks of a stream")
	_ = flags.Parse(args)
	body := `{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"gpt-4o-2024-08-06","choices":[{"index":0,` +
		`"message":{"role":"assistant","content":"` + strings.Repeat("lorem ipsum ", 55) + `"},"finish_reason":"stop"}],` +
		`"usage":{"prompt_tokens":200,"completion_tokens":150,"total_tokens":350,"prompt_tokens_details":{"cached_tokens":100}}}`
	whole := []byte(fmt.Sprintf("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: req_1\r\n"+
		"content-length: %d\r\n\r\n%s", len(body), body))
	head := []byte("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
	var pieces [][]byte
	for i := 0; i < chunksPerStream-1; i++ {
		var b bytes.Buffer
		chunk(&b, event(`{"content":" word"}`, "null", `,"usage":null`))
		pieces = append(pieces, b.Bytes())
	}
	var end bytes.Buffer
	chunk(&end, event("{}", `"stop"`, `,"usage":null`))
	chunk(&end, `data: {"id":"chatcmpl-1","choices":[],"usage":{"prompt_tokens":200,"completion_tokens":63,"total_tokens":263}}`+"\n\n")
	chunk(&end, "data: [DONE]\n\n")
	end.WriteString("0\r\n\r\n")
	pieces = append(pieces, end.Bytes())
	burst := append(append([]byte{}, head...), bytes.Join(pieces, nil)...)

	listener, err := net.Listen("tcp", *address)
	check(err)
	for {
		connection, err := listener.Accept()
		check(err)
		go func() {
			defer connection.Close()
			reader := bufio.NewReaderSize(connection, 1<<16)
			for {
				request, ok := readRequest(reader)
				if !ok {
					return
				}
				switch {
				case !bytes.Contains(request, []byte(`"stream":true`)):
					_, err = connection.Write(whole)
				case *pace == 0:
					_, err = connection.Write(burst)
				default:
					_, err = connection.Write(head)
					for _, piece := range pieces {
						time.Sleep(*pace)
						if _, err = connection.Write(piece); err != nil {
							return
						}
					}
				}
				if err != nil {
					return
				}
			}
		}()
	}
}

func readRequest(reader *bufio.Reader) ([]byte, bool) {
	size := 0
	for {
		line, err := reader.ReadSlice('\n')
		if err != nil {
			return nil, false
		}
		if len(line) <= 2 {
			break
		}
		if len(line) > 15 && strings.EqualFold(string(line[:15]), "content-length:") {
			size, _ = strconv.Atoi(strings.TrimSpace(string(line[15:])))
		}
	}
	body := make([]byte, size)
	_, err := io.ReadFull(reader, body)
	return body, err == nil
}

// proxy

type buffers struct{ pool sync.Pool }

func (b *buffers) Get() []byte  { return b.pool.Get().([]byte) }
func (b *buffers) Put(x []byte) { b.pool.Put(x) } //nolint

func proxy(args []string) {
	flags := flag.NewFlagSet("proxy", flag.ExitOnError)
	address := flags.String("listen", "127.0.0.1:9101", "")
	target := flags.String("target", "http://127.0.0.1:9100", "")
	_ = flags.Parse(args)
	runtime.GOMAXPROCS(1)
	to, err := url.Parse(*target)
	check(err)
	p := httputil.NewSingleHostReverseProxy(to)
	p.Transport = &http.Transport{MaxIdleConns: 4096, MaxIdleConnsPerHost: 2048, DisableCompression: true}
	p.FlushInterval = -1
	p.BufferPool = &buffers{sync.Pool{New: func() any { return make([]byte, 32<<10) }}}
	check(http.ListenAndServe(*address, p))
}

// load

type result struct {
	Requests  int     `json:"requests"`
	Errors    int     `json:"errors"`
	Seconds   float64 `json:"seconds"`
	PerSecond float64 `json:"per_second"`
	Chunks    float64 `json:"chunks_per_second"`
	P50       float64 `json:"p50_ms"`
	P99       float64 `json:"p99_ms"`
	FirstP50  float64 `json:"first_p50_ms"`
	FirstP99  float64 `json:"first_p99_ms"`
	LastError string  `json:"last_error"`
}

func load(args []string) {
	flags := flag.NewFlagSet("load", flag.ExitOnError)
	address := flags.String("to", "127.0.0.1:9100", "host:port")
	connections := flags.Int("connections", 64, "")
	seconds := flags.Float64("seconds", 3, "")
	rate := flags.Float64("rate", 0, "requests per second, evenly spaced; 0: as fast as replies come")
	stream := flags.Bool("stream", false, "")
	key := flags.String("key", "sk-bench", "")
	once := flags.Bool("once", false, "one request per connection")
	_ = flags.Parse(args)

	body := `{"model":"gpt-4o","messages":[{"role":"user","content":"` + strings.Repeat("lorem ipsum ", 75) + `"}]}`
	if *stream {
		body = `{"stream":true,` + body[1:]
	}
	request := []byte(fmt.Sprintf("POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer %s\r\n"+
		"content-type: application/json\r\ncontent-length: %d\r\n\r\n%s", *key, len(body), body))

	start := time.Now()
	stop := start.Add(time.Duration(*seconds * float64(time.Second)))
	var lock sync.Mutex
	var total, first []float64
	failed, lastError := 0, ""
	var ticket int64 = -1
	next := func() (time.Time, bool) { // when the next request is due, and whether there is one
		if *rate == 0 {
			now := time.Now()
			return now, now.Before(stop)
		}
		lock.Lock()
		ticket++
		due := start.Add(time.Duration(float64(ticket) / *rate * float64(time.Second)))
		lock.Unlock()
		return due, due.Before(stop)
	}
	var group sync.WaitGroup
	for i := 0; i < *connections; i++ {
		group.Add(1)
		go func() {
			defer group.Done()
			var connection net.Conn
			var reader *bufio.Reader
			var mine, mineFirst []float64
			errors, word := 0, ""
			for turn := 0; !*once || turn == 0; turn++ {
				due, more := next()
				if !more {
					break
				}
				time.Sleep(time.Until(due))
				if connection == nil {
					var err error
					if connection, err = net.Dial("tcp", *address); err != nil {
						errors, word = errors+1, err.Error()
						connection = nil
						time.Sleep(10 * time.Millisecond)
						continue
					}
					reader = bufio.NewReaderSize(connection, 1<<16)
				}
				_, err := connection.Write(request)
				var began time.Time
				if err == nil {
					began, err = readReply(reader, *stream)
				}
				if err != nil {
					errors, word = errors+1, err.Error()
					connection.Close()
					connection = nil
					continue
				}
				mine = append(mine, time.Since(due).Seconds()*1e3) // from when it was due: nothing is left out
				mineFirst = append(mineFirst, began.Sub(due).Seconds()*1e3)
			}
			lock.Lock()
			total, first = append(total, mine...), append(first, mineFirst...)
			failed += errors
			if word != "" {
				lastError = word
			}
			lock.Unlock()
		}()
	}
	group.Wait()
	elapsed := time.Since(start).Seconds()
	r := result{Requests: len(total), Errors: failed, Seconds: elapsed, PerSecond: float64(len(total)) / elapsed, LastError: lastError}
	if *stream {
		r.Chunks = r.PerSecond * chunksPerStream
	}
	r.P50, r.P99 = quantiles(total)
	r.FirstP50, r.FirstP99 = quantiles(first)
	check(json.NewEncoder(os.Stdout).Encode(r))
}

func readReply(reader *bufio.Reader, stream bool) (time.Time, error) {
	line, err := reader.ReadSlice('\n')
	if err != nil {
		return time.Time{}, err
	}
	if !bytes.HasPrefix(line, []byte("HTTP/1.1 200")) {
		return time.Time{}, fmt.Errorf("%s", bytes.TrimSpace(line))
	}
	size := -1
	for {
		line, err = reader.ReadSlice('\n')
		if err != nil {
			return time.Time{}, err
		}
		if len(line) <= 2 {
			break
		}
		if len(line) > 15 && strings.EqualFold(string(line[:15]), "content-length:") {
			size, _ = strconv.Atoi(strings.TrimSpace(string(line[15:])))
		}
	}
	if _, err = reader.Peek(1); err != nil {
		return time.Time{}, err
	}
	began := time.Now()
	if size >= 0 {
		if stream {
			return began, fmt.Errorf("a stream was asked for")
		}
		_, err = reader.Discard(size)
		return began, err
	}
	done, events := false, 0
	for {
		line, err = reader.ReadSlice('\n')
		if err != nil {
			return began, err
		}
		n, err := strconv.ParseInt(string(bytes.TrimSpace(line)), 16, 64)
		if err != nil {
			return began, err
		}
		piece := make([]byte, n+2)
		if _, err = io.ReadFull(reader, piece); err != nil {
			return began, err
		}
		if n == 0 {
			break
		}
		events += bytes.Count(piece, []byte("data: "))
		done = done || bytes.Contains(piece, []byte("data: [DONE]"))
	}
	if !done || events < chunksPerStream {
		return began, fmt.Errorf("the stream ended early: %d events", events)
	}
	return began, nil
}

func quantiles(values []float64) (float64, float64) {
	if len(values) == 0 {
		return 0, 0
	}
	sort.Float64s(values)
	return values[len(values)/2], values[len(values)*99/100]
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
