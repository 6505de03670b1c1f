package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"
)

// checkLeases looks for leases of a stopped daemon that no record of the cache
// and no build of the history owns.
func (d *daemon) checkLeases() error {
	owners := map[string]bool{}
	err := d.view("metadata_v2.db", func(tx *bolt.Tx) error {
		if records := tx.Bucket([]byte("_main")); records != nil {
			return records.ForEach(func(id, _ []byte) error {
				owners[string(id)] = true
				return nil
			})
		}
		return nil
	})
	if err != nil {
		return err
	}
	return d.view("containerdmeta.db", func(tx *bolt.Tx) error {
		leases := bucket(tx, "v1", "buildkit", "leases")
		if leases == nil {
			return nil
		}
		return leases.ForEachBucket(func(id []byte) error {
			name := string(id)
			record, _, _ := strings.Cut(name, "-")
			if owners[record] || strings.HasPrefix(name, "ref_") || strings.HasPrefix(name, "history_") {
				return nil
			}
			labels := map[string]string{}
			if all := leases.Bucket(id).Bucket([]byte("labels")); all != nil {
				_ = all.ForEach(func(key, value []byte) error {
					labels[string(key)] = string(value)
					return nil
				})
			}
			return fmt.Errorf("a lease that nobody owns: %s %v", name, labels)
		})
	})
}

func (d *daemon) view(name string, f func(*bolt.Tx) error) error {
	file := filepath.Join(d.worker(), name)
	db, err := bolt.Open(file, 0o600, &bolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	defer db.Close()
	return db.View(f)
}

func bucket(tx *bolt.Tx, names ...string) *bolt.Bucket {
	b := tx.Bucket([]byte(names[0]))
	for _, name := range names[1:] {
		if b == nil {
			return nil
		}
		b = b.Bucket([]byte(name))
	}
	return b
}
