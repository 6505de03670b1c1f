SELECT count(*), sum(amount) FROM (SELECT amount FROM orders ORDER BY id DESC LIMIT 500);
SELECT customer, count(*), sum(amount) FROM orders WHERE customer BETWEEN 41 AND 43 GROUP BY customer;
