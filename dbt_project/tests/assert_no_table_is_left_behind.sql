-- A table that no model makes any more, or that a failed test has stored, keeps what an erasure or a key rotation takes
-- from others: drop it.

select concat_ws('.', relnamespace::regnamespace, relname) as left_behind
from pg_class
where
    relkind in ('r', 'p', 'm')
    and relnamespace::regnamespace::text in ('staging', 'analytics')
    and concat_ws('.', relnamespace::regnamespace, relname) not in ({{ relations_of_models() }})
    and oid in (
        select attrelid from pg_attribute
        where not attisdropped and (attname in ('message_id', 'user_id', 'subject') or attname like 'masked\_%')
    )
