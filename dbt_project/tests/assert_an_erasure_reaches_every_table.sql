-- Each table that says whose its rows are is made anew by every run, or loses the messages of erased persons by
-- remove_erased(). No others: neither a report that grows without message_id, nor what is left over of a model that the
-- project has no more. `dbt show` of this test names them; after a copy of what has to stay, drop them.
{%- set reached, persons = [], ['message_id'] -%}
{%- for node in graph.nodes.values() -%}
    {%- if node.config.materialized != 'incremental'
        or 'message_id' in node.columns and 'remove_erased()' in node.config['post-hook'] | string -%}
        {%- do reached.append(node.schema ~ '.' ~ node.alias) -%}
    {%- endif -%}
{%- endfor -%}
{%- for it in declared_events().values() -%}{%- do persons.append(it.subject) -%}{%- endfor %}

select pg_class.oid::regclass as not_reached
from pg_class
where
    relkind = 'r' and relowner = current_user::regrole and relpersistence <> 't'
    and relnamespace::regnamespace::text || '.' || relname not in ({{ quoted_list(reached) }})
    and exists (
        select from pg_attribute
        where attrelid = pg_class.oid and attname in ({{ quoted_list(persons) }}) and not attisdropped
    )
