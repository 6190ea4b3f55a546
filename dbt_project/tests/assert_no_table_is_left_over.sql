-- No table of an event type or a model that the project has no more: dbt would take no erased person out of it. After a
-- copy of what has to stay, drop it.
{%- set known, persons = [], ['message_id'] -%}
{%- for node in graph.nodes.values() -%}{%- do known.append(node.schema ~ '.' ~ node.alias) -%}{%- endfor -%}
{%- for it in declared_events().values() -%}{%- do persons.append(it.subject) -%}{%- endfor %}

select pg_class.oid::regclass as left_over
from pg_class
where
    relkind = 'r' and relowner = current_user::regrole and relpersistence <> 't'
    and relnamespace::regnamespace::text || '.' || relname not in ({{ quoted_list(known) }})
    and exists (
        select from pg_attribute
        where attrelid = pg_class.oid and attname in ({{ quoted_list(persons) }}) and not attisdropped
    )
