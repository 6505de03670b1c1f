PRAGMA journal_mode = OFF;
CREATE TABLE orders (id INTEGER PRIMARY KEY, customer INTEGER NOT NULL, amount INTEGER NOT NULL, note TEXT NOT NULL);
WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n WHERE id < 1200000)
INSERT INTO orders SELECT id, id % 240000, id % 997, hex(randomblob(100)) FROM n;
CREATE INDEX orders_of_customer ON orders (customer);
