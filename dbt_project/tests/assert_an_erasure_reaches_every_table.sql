-- Each table that says whose its rows are is made anew by every run, or loses the messages of erased persons by
-- remove_erased(). No others: neither a report that grows without message_id, nor what is left over of a model that the
-- project has no more or of a test that failed; a key rotation passes over these as well. `dbt show` of this test names
-- them; after a copy of what has to stay, drop them. (--store-failures leaves an empty table of a test that passed.)
{%- set reached, of_tests, persons = ['none'], ['none'], ['message_id', 'subject'] -%}
{%- for node in graph.nodes.values() if node.resource_type == 'model' -%}
    {%- if node.config.materialized != 'incremental'
        or 'message_id' in node.columns and 'remove_erased()' in node.config['post-hook'] | string -%}
        {%- do reached.append(node.schema ~ '.' ~ node.alias) -%}
    {%- endif -%}
{%- endfor -%}
{%- for node in graph.nodes.values() if node.resource_type == 'test' -%}
    {%- do of_tests.append(node.schema ~ '.' ~ node.alias) -%}
{%- endfor -%}
{%- for it in declared_events().values() -%}{%- do persons.append(it.subject) -%}{%- endfor %}

select concat_ws('.', relnamespace::regnamespace, relname) as not_reached
from pg_class
where
    relkind in ('r', 'p', 'm')
    and relnamespace::regnamespace::text in ('staging', 'analytics')
    and concat_ws('.', relnamespace::regnamespace, relname) not in ({{ quoted_list(reached) }})
    and not (
        pg_relation_size(oid) = 0
        and concat_ws('.', relnamespace::regnamespace, relname) in ({{ quoted_list(of_tests) }})
    )
    and oid in (
        select attrelid from pg_attribute
        where not attisdropped and (attname in ({{ quoted_list(persons) }}) or attname like 'masked\_%')
    )
