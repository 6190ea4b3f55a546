{#
  Views are replaced in place. dbt's own materialization renames the old view and drops it with all that stands on it,
  on every run. And a view that is already as the project says is left alone: replacing it would wait for its readers,
  and the next readers for that.
#}
{% materialization view, adapter='postgres' -%}
    {%- set view = this.incorporate(type='view') -%}

    {{ run_hooks(pre_hooks) }}

    {%- set sql = with_owners_rights(view, sql) -%}
    {% if not is_as_deployed(view, sql) %}{{ replace_in_place(view, sql) }}{% endif %}

    {% do apply_grants(view, config.get('grants'), should_revoke=True) %}
    {% do persist_docs(view, model) %}

    {{ run_hooks(post_hooks) }}
    {{ adapter.commit() }}
    {{ return({'relations': [view]}) }}
{%- endmaterialization %}


{#
  A view that reads raw and the keys with its owner's rights and shows only its own columns. A role that may create in
  its schema (masker, under the target boundary) deploys it. Any other only compares: the run ends when what is deployed
  is not what the project says.
#}
{% materialization boundary_view, adapter='postgres' -%}
    {%- set view = this.incorporate(type='view') -%}
    {%- set may_deploy = scalar("select has_schema_privilege('" ~ view.schema ~ "', 'create')") -%}
    {%- set as_deployed = is_as_deployed(view, sql, options='{security_barrier=true}') -%}

    {{ run_hooks(pre_hooks) }}

    {% if may_deploy %}
        {% if not as_deployed %}{{ replace_in_place(view, sql, options='with (security_barrier = true)') }}{% endif %}
        {% if needs_reader() %}
            {% do create_reader(view, 'select * from ' ~ view, 'setof ' ~ view) %}
        {% endif %}
        {% do apply_grants(view, config.get('grants'), should_revoke=True) %}
        {% do persist_docs(view, model) %}
    {% elif not as_deployed %}
        {% do exceptions.raise_compiler_error(
            view.schema ~ '.' ~ view.identifier ~ ' in the database is not the one in this project: deploy it with `make migrate`.'
            ~ ' (After an interrupted key rotation, `make rotate-key` does that and the rest.)'
        ) %}
    {% endif %}

    {{ run_hooks(post_hooks) }}
    {{ adapter.commit() }}
    {{ return({'relations': [view]}) }}
{%- endmaterialization %}


{% macro scalar(query) -%}
    {{ return(run_query(query).columns[0].values()[0]) }}
{%- endmacro %}


{# Whether the view in the database is the one that this SQL would make. To ask, nothing of what it reads need be readable.
   This is the main statement, which dbt wants of every model, where there is nothing else to do. #}
{% macro is_as_deployed(view, sql, options='') -%}
    {%- set draft = make_temp_relation(view) -%}
    {%- call statement('main', fetch_result=true) -%}
        create temporary view {{ draft }} as {{ sql }}
        ;  -- on a line of its own: a comment may end the model
        select set_config('masked_logins.is_as_deployed', (count(*) = 1)::text, true) from pg_class
        where
            oid = to_regclass('{{ view }}') and relkind = 'v'
            and pg_get_viewdef(oid) = pg_get_viewdef('{{ draft }}'::regclass)
            and coalesce(reloptions::text, '') = '{{ options }}';
        drop view {{ draft }};
        select current_setting('masked_logins.is_as_deployed')::boolean
    {%- endcall -%}
    {{ return(load_result('main').table.columns[0].values()[0]) }}
{%- endmacro %}


{# Whether this view, and those that stand on it, are the owner's own: the boundary, which is deployed as a whole. #}
{% macro nobody_else_uses(view) -%}
    {{ return(config.get('materialized') == 'boundary_view' and scalar(
        "select count(*) = 0 from pg_class where oid in (" ~ views_on("select to_regclass('" ~ view ~ "')::oid")
        ~ ") and relowner <> current_user::regrole"
    )) }}
{%- endmacro %}


{# These relations, and the views that stand on them, however far up: their oids. #}
{% macro views_on(oids) -%}
    with recursive uses (view) as (
        {{ oids }}
        union
        select pg_rewrite.ev_class
        from uses
        inner join pg_depend
            on refclassid = 'pg_class'::regclass and refobjid = view and classid = 'pg_rewrite'::regclass
        inner join pg_rewrite on pg_rewrite.oid = objid
    )
    select view from uses
{%- endmacro %}


{# Columns can be added at the end and nothing else; PostgreSQL would say so with two words and no remedy. #}
{% macro replace_in_place(view, sql, options='') -%}
    {%- set assertion = get_assert_columns_equivalent(sql) if config.get('contract').enforced -%}
    {%- set draft = make_temp_relation(view) -%}
    {%- do run_query('create temporary view ' ~ draft ~ ' as ' ~ sql) -%}
    {%- set changed = run_query("
        select deployed.attname
        from pg_attribute as deployed
        left join pg_attribute as draft
            on draft.attrelid = '" ~ draft ~ "'::regclass and draft.attnum = deployed.attnum
        where
            deployed.attrelid = to_regclass('" ~ view ~ "') and deployed.attnum > 0
            and (deployed.attname, deployed.atttypid, deployed.atttypmod)
            is distinct from (draft.attname, draft.atttypid, draft.atttypmod)
        order by deployed.attnum
    ").columns[0].values() -%}
    {%- do run_query('drop view ' ~ draft) -%}
    {%- if changed and nobody_else_uses(view) -%}
        {%- do run_query('drop view ' ~ view ~ ' cascade') -%}  {#- what the same command makes anew -#}
    {%- elif changed -%}
        {%- do exceptions.raise_compiler_error(
            view.schema ~ '.' ~ view.identifier ~ ' cannot be replaced in place: ' ~ changed | join(', ')
            ~ ' would be renamed, moved, retyped or removed. Put new columns at the end, or drop the view first, with'
            ~ ' all that stands on it: drop view ' ~ view.schema ~ '.' ~ view.identifier ~ ' cascade.'
        ) -%}
    {%- endif -%}
    {% call statement('main') -%}
        create or replace view {{ view }} {{ options }} as
        {{ assertion }}
        {{ sql }}
        ;
    {%- endcall %}
{%- endmacro %}
