package jobs

import "testing"

// FuzzRedisURL: a URL is refused, or can be connected with; nothing panics on the way.
func FuzzRedisURL(f *testing.F) {
	for _, url := range []string{"redis://:p@h:1/0", "rediss://u:p@h:1", "redis-sentinel://:p@a:1,b:2?master=m", "redis-cluster://u:p@a:1,b:2", "rediss-cluster://a:1", "redis://", "redis-cluster://,", "redis://h:port", "%zz://", "redis-sentinel://@"} {
		f.Add(url)
	}
	f.Fuzz(func(t *testing.T, url string) {
		opt, err := ParseRedisURL(url)
		if err != nil {
			return
		}
		client, err := NewRedis(opt)
		if err != nil {
			t.Fatalf("%q is read and cannot be used: %v", url, err)
		}
		client.Close()
	})
}
